"""What a notebook or a script uses of vsteer. `import vsteer` hands it out, each name when it is used."""

import warnings
from contextlib import suppress
from importlib import import_module

# In Jupyter without ipywidgets tqdm warns when it is first imported, which transformers does.
with warnings.catch_warnings(), suppress(ImportError):
    warnings.simplefilter("ignore")
    import_module("tqdm.auto")
