"""The tables that the code names are the tables that the revisions made: the same columns, no more, no less."""

from importlib import import_module

import pytest
from sqlalchemy import MetaData

from services.runtime.settings import ROOMS
from services.runtime.tables import runtime_tables


def declared(room):
    module = import_module(f"services.{room}.tables")
    found = [value for value in vars(module).values() if isinstance(value, MetaData)]
    tables = {
        table.name: table for metadata in (*found, runtime_tables(room).metadata) for table in metadata.tables.values()
    }
    assert tables
    return {(name, column.name) for name, table in tables.items() for column in table.columns}


@pytest.mark.parametrize("room", ROOMS)
async def test_code_and_database_name_the_same_columns(database, room):
    async with database.connected() as owner:
        rows = await owner.fetch(
            "select c.table_name, c.column_name from information_schema.columns c"
            " join pg_class k on k.relname = c.table_name join pg_namespace n on n.oid = k.relnamespace and n.nspname = c.table_schema"
            " where c.table_schema = $1 and k.relkind in ('r', 'p', 'v') and not k.relispartition",
            room,
        )
    made = {(row["table_name"], row["column_name"]) for row in rows}
    assert declared(room) == made
