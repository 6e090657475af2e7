"""Schema history, one Alembic revision a file."""
