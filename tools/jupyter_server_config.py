"""For `make lab`: a notebook is saved as it is committed, and holds no more than that."""
import warnings

from nbdev.clean import clean_jupyter

c = get_config()  # noqa: F821  (Jupyter defines it)
c.ContentsManager.pre_save_hook = clean_jupyter
# Jupyter applies its settings anew as extensions load, and wonders at the hook that it has.
warnings.filterwarnings("ignore", "Overriding existing pre_save_hook")
