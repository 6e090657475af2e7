"""A run of the user's own program: from `tsx.init` to its end."""
