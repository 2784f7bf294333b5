"""One job in one folder: its stages, files, settings and methods."""

import peft_noah.run.methods  # noqa: F401 (it registers the methods of this package)
