"`python -m ddpm_nb` is the command `ddpm-nb`."
import sys

from ddpm_nb.engine.cli import main

if __name__ == "__main__": sys.exit(main())
