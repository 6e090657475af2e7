"""tsx trains small mixture-of-experts time-series models and explains what goes wrong in them."""

__version__ = "0.1.0"
