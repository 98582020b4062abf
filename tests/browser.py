"""A headless browser, driven over a pipe by Chrome's own protocol: nothing else to install."""
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EXECUTABLE = os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A tab, fresh for each address. What it asks of the network is in `requests`, what it
    complains of in `complaints`."""
    def __init__(self, send, receive):
        self.send_bytes, self.receive_bytes = send, receive
        self.count, self.tab, self.session = 0, None, None
        self.requests, self.complaints = [], []
        self.appearance()

    def call(self, method, **params):
        "Send a command and wait for its answer."
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session and not method.startswith("Target."): message["sessionId"] = self.session
        self.send_bytes(json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive_bytes()
            if answer.get("id") == self.count:
                if "error" in answer: raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.note(answer)

    def note(self, event):
        params, kind, said = event.get("params", {}), event.get("method"), None
        if kind == "Network.requestWillBeSent": self.requests.append(params["request"]["url"])
        if kind == "Runtime.exceptionThrown": said = params["exceptionDetails"]
        if kind == "Runtime.consoleAPICalled" and params["type"] == "error": said = params["args"]
        if kind == "Log.entryAdded" and params["entry"]["level"] == "error": said = params["entry"]
        if said: self.complaints.append(json.dumps(said)[:500])

    def js(self, expression):
        "The value of an expression; a promise is awaited."
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                           awaitPromise=True)
        failed = answer.get("exceptionDetails")
        if failed: raise RuntimeError(json.dumps(failed)[:1000])
        return answer["result"].get("value")

    def holds(self, condition):
        "Whether an expression is true; not yet, while one page makes way for the next."
        try: return self.js(f"Boolean({condition})")
        except RuntimeError as e:
            if any(words in str(e) for words in ("target navigated", "context was destroyed",
                                                 "Cannot find default execution context")):
                return False
            raise

    def wait(self, condition, seconds=60):
        "Until an expression is true."
        end = time.time() + seconds
        while not self.holds(condition):
            if time.time() > end: raise TimeoutError(f"after {seconds} s still not: {condition}")
            time.sleep(0.05)

    def appearance(self, scheme="light"):
        "Light or dark, for the pages opened from now on."
        self.media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}

    def resize(self, width, height):
        "Make the page that is open wide or narrow."
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 600)

    def open(self, url):
        "Load a page into a new tab, and wait until its formulas are set."
        if self.tab: self.call("Target.closeTarget", targetId=self.tab)
        self.requests.clear(), self.complaints.clear()
        self.tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=self.tab, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"): self.call(f"{domain}.enable")
        self.call("Emulation.setEmulatedMedia", **self.media)
        self.resize(1300, 900)
        self.call("Page.navigate", url=url)
        here = f"location.href.startsWith({json.dumps(url.split('#')[0])})"
        self.wait(f"document.readyState == 'complete' && {here}")
        self.js("window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 1) : 1")


OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
           "--no-first-run", "--disable-background-networking", "--disable-component-update",
           "--disable-sync", "--disable-quic", "--hide-scrollbars", "--remote-debugging-pipe")


# in a page: how light a colour is, and what colour an element stands on
LIGHT = """
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$|transparent/.test(c)) return c;
    }
    return "rgb(255, 255, 255)";
  };
"""


@contextlib.contextmanager
def browser():
    "A page in a fresh browser, which goes away with everything it wrote."
    to_read, to_write = os.pipe()      # ours -> the browser's file descriptor 3
    from_read, from_write = os.pipe()  # the browser's file descriptor 4 -> ours

    def hand_over():
        low = [os.dup(to_read), os.dup(from_write)]   # out of the way of 3 and 4
        os.dup2(low[0], 3), os.dup2(low[1], 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [EXECUTABLE, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=hand_over, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read), os.close(from_write)
        buffer = b""

        def receive(seconds=90):
            nonlocal buffer
            while b"\0" not in buffer:
                if not select.select([from_read], [], [], seconds)[0]:
                    raise TimeoutError("the browser does not answer")
                part = os.read(from_read, 1 << 20)
                if not part: raise RuntimeError("the browser has ended")
                buffer += part
            message, buffer = buffer.split(b"\0", 1)
            return json.loads(message)

        def send(data):
            while data: data = data[os.write(to_write, data):]

        try:
            yield Page(send, receive)
        finally:
            process.terminate()
            try: process.wait(10)
            except subprocess.TimeoutExpired: process.kill()
            os.close(to_write), os.close(from_read)
