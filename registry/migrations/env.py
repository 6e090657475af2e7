"""Alembic's entry: runs the migrations on the connection that `registry.migrate` hands over."""

from __future__ import annotations

from alembic import context

from registry import schema

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("migrations run through registry.migrate: tsx registry migrate")
context.configure(
    connection=connection, target_metadata=schema.metadata, transaction_per_migration=False
)
with context.begin_transaction():
    context.run_migrations()
