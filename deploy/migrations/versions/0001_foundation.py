"""One schema per room, open to that room's role alone; the one clock; the heartbeat of the processes."""

from __future__ import annotations

from alembic import context, op

revision = "0001_foundation"
down_revision = None
branch_labels = None
depends_on = None

ROOMS = ("usage", "balance", "groups", "invoices", "payments")
ROLES = ", ".join(f"tollbook_{room}" for room in ROOMS)

CLOCK = """
CREATE TABLE runtime.clock (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    ahead     interval NOT NULL DEFAULT interval '0',
    movable   boolean NOT NULL,
    CHECK (movable OR ahead = interval '0'),
    CHECK (ahead >= interval '0')
)
"""

CLOCK_COMMENT = """
COMMENT ON TABLE runtime.clock IS
    'How far the one clock is ahead of the transaction time, in seconds. Moved only where the database was made movable.'
"""

CLOCK_NOW = """
CREATE FUNCTION runtime.clock_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT transaction_timestamp() + ahead FROM runtime.clock $$
"""

# Kept in seconds: a month or a day would have another length on every later day.
CLOCK_MOVE = """
CREATE FUNCTION runtime.clock_move(forward interval) RETURNS timestamptz LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog AS
$$
DECLARE
    here runtime.clock;
    target timestamptz;
BEGIN
    SELECT * INTO STRICT here FROM runtime.clock FOR UPDATE;
    IF NOT here.movable THEN
        RAISE EXCEPTION 'the clock of this database cannot be moved'
            USING HINT = 'Only a database that was made movable (tests, demo) has a clock that moves.';
    END IF;
    target := transaction_timestamp() + here.ahead + forward;
    IF forward IS NULL OR target < transaction_timestamp() + here.ahead THEN
        RAISE EXCEPTION 'the clock does not go back' USING HINT = 'Move it by an interval of zero or more.';
    END IF;
    UPDATE runtime.clock
       SET ahead = make_interval(secs => extract(epoch FROM target - transaction_timestamp())::double precision);
    RETURN runtime.clock_now();
END
$$
"""

HEARTBEAT = """
CREATE TABLE runtime.heartbeat (
    room         text NOT NULL,
    process      text NOT NULL,
    at           timestamptz NOT NULL,
    loop_age_ms  integer NOT NULL CHECK (loop_age_ms >= 0),
    assigned     integer NOT NULL CHECK (assigned >= 0),
    lag          bigint NOT NULL CHECK (lag >= 0),
    PRIMARY KEY (room, process)
)
"""

HEARTBEAT_COMMENT = """
COMMENT ON TABLE runtime.heartbeat IS
    'One row per process: when it last looked, the age of its loop, its partitions, its lag.'
"""


def upgrade() -> None:
    """Makes the schemas, what each role may do in them, the clock and the heartbeat."""
    # Not per schema: the right of everybody to run a new function can be taken back only for the owner as a whole.
    op.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    op.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    for room in ROOMS:
        role = f"tollbook_{room}"
        op.execute(f"CREATE SCHEMA {room}")
        op.execute(f"GRANT USAGE ON SCHEMA {room} TO {role}")
        rights = f"ALTER DEFAULT PRIVILEGES IN SCHEMA {room} GRANT"
        op.execute(f"{rights} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}")
        op.execute(f"{rights} USAGE ON SEQUENCES TO {role}")
    op.execute("CREATE SCHEMA runtime")
    op.execute(f"GRANT USAGE ON SCHEMA runtime TO {ROLES}")
    op.execute(f"ALTER DEFAULT PRIVILEGES IN SCHEMA runtime GRANT EXECUTE ON FUNCTIONS TO {ROLES}")
    for statement in (CLOCK, CLOCK_COMMENT, CLOCK_NOW, CLOCK_MOVE, HEARTBEAT, HEARTBEAT_COMMENT):
        op.execute(statement)
    movable = bool(context.config.attributes.get("movable"))
    op.execute(f"INSERT INTO runtime.clock (movable) VALUES ({movable})")
    op.execute(f"GRANT SELECT ON runtime.clock TO {ROLES}")
    op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON runtime.heartbeat TO {ROLES}")


def downgrade() -> None:
    """Databases go forward only: a mistake is mended by the next revision."""
    raise NotImplementedError
