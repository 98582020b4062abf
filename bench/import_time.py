"""What importing the package adds to importing torch: `python bench/import_time.py`. The aim is 0.25 s at most."""
import statistics
import subprocess
import sys
import time

RUNS = 7


def seconds(code):
    "Wall time of a fresh interpreter that runs `code`."
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main():
    times = {"import torch": [], "import ddpm_nb": []}
    for code in times: seconds(code)                                # warm the disk's cache
    for _ in range(RUNS):                                           # in turns, so that a busy spell hits both
        for code, taken in times.items(): taken.append(seconds(code))
    torch, ours = (statistics.median(t) for t in times.values())
    print(f"import torch {torch:.2f} s, import ddpm_nb {ours:.2f} s (medians of {RUNS}): it adds {ours - torch:+.2f} s")


if __name__ == "__main__": main()
