"""One destination, one file, one class."""
