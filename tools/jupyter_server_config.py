"""For `make lab`: a notebook is saved as it is committed, and holds no more than that."""
from nbdev.clean import clean_jupyter

c = get_config()  # noqa: F821  (Jupyter defines it)
c.ContentsManager.pre_save_hook = clean_jupyter
