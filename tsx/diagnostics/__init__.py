"""One file per family of fault: state in, findings out."""
