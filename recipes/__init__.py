"""Named experiments as TOML, and the loader that turns them into plain dicts."""
