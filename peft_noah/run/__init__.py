"""One job in one folder: its stages, files, settings and methods."""
