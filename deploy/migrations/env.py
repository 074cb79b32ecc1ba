"""Applies revisions on the connection that `services.runtime.migrate` opened."""

from alembic import context

from services.kernel.errors import InvalidInput

connection = context.config.attributes.get("connection")
if connection is None:
    raise InvalidInput("revisions need roles and a database around them: run `python -m services.runtime.migrate`")
context.configure(connection=connection, transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
