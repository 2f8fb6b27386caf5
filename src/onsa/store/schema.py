"""The tables. Only types that every database has are used.

Times are seconds since 1970 (UTC) and JSON is text: both mean the same in every database, NaN included.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Integer, MetaData, String, Table, Text

VERSION = 2  # 1: runs alone; 2: the service beside them

metadata = MetaData()

schema = Table("onsa_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

runs = Table(
    "runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("identity", String(64), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("task", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("adaptation", Text, nullable=False),
    Column("created", Double, nullable=False, index=True),
    Column("updated", Double, nullable=False),
    Column("pid", Integer),
    Column("pid_started", Double),
    Column("host", Text),
    Column("folder", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("summary", Text, nullable=False),
    Column("error", Text),
)


def _of_run(name: str) -> Column[str]:
    return Column(name, String(32), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)


metrics = Table(
    "metrics",
    metadata,
    _of_run("run"),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(128), primary_key=True),
    Column("value", Double),  # SQLite has no NaN and keeps NULL in its place
)

artifacts = Table(
    "artifacts",
    metadata,
    _of_run("run"),
    Column("path", String(512), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

lineage = Table(
    "lineage",
    metadata,
    _of_run("child"),
    _of_run("parent"),
    Column("relation", String(64), primary_key=True),
)

# The service: what projects own, in the order in which it came (``seq``).

projects = Table(
    "projects",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created", Double, nullable=False),
)


def _owned(name: str, *columns: Column[object]) -> Table:
    """A table of what projects own."""
    return Table(
        name,
        metadata,
        Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("id", String(128), nullable=False, unique=True),
        Column("project", String(64), ForeignKey("projects.id"), nullable=False, index=True),
        Column("created", Double, nullable=False),
        *columns,
    )


keys = _owned(
    "keys",
    Column("name", Text, nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("shown", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("revoked", Double),
)

files = _owned(
    "files",
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("expires", Double),
)

uploads = _owned(
    "uploads",
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("mime_type", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("expires", Double, nullable=False),
    Column("lasts_s", BigInteger),
    Column("file", String(128)),
)

parts = _owned(
    "upload_parts",
    Column("upload", String(128), ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
)

jobs = _owned(
    "jobs",
    Column("status", String(32), nullable=False, index=True),
    Column("model", Text, nullable=False),
    Column("training_file", String(128), nullable=False),
    Column("validation_file", String(128)),
    Column("method", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("suffix", Text),
    Column("metadata", Text),
    Column("integrations", Text),
    Column("error", Text),
    Column("finished", Double),
    Column("estimated", Double),
    Column("fine_tuned_model", Text),
    Column("result_files", Text, nullable=False),
    Column("trained_tokens", BigInteger),
    Column("run", String(32)),
    # What the supervisor and the worker agree on (see store/jobs.py).
    Column("wanted", String(16)),
    Column("fence", BigInteger, nullable=False),
    Column("lease_until", Double),
    Column("attempts", Integer, nullable=False),
    Column("started", Double),
    Column("pid", Integer),
    Column("pid_started", Double),
    Column("host", Text),
)

events = _owned(
    "job_events",
    Column("job", String(128), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("level", String(8), nullable=False),
    Column("type", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text),
)

checkpoints = _owned(
    "job_checkpoints",
    Column("job", String(128), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("step", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("metrics", Text, nullable=False),
)

# What answers under a name beside the catalogue's bases. folder: of the run, or of a checkpoint of it.
models = _owned(
    "models",
    Column("base", Text, nullable=False),
    Column("run", String(32), nullable=False),
    Column("folder", Text, nullable=False),
)

aliases = _owned(
    "aliases",
    Column("name", String(256), nullable=False, index=True),
    Column("targets", Text, nullable=False),
)

webhooks = _owned("webhooks", Column("url", Text, nullable=False), Column("secret", Text, nullable=False))

deliveries = _owned(
    "webhook_deliveries",
    Column("webhook", String(128), ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due", Double, nullable=False, index=True),
)

completions = _owned(
    "completions",
    Column("model", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("messages", Text, nullable=False),
    Column("document", Text, nullable=False),
)

permissions = _owned(
    "permissions",
    Column("model", String(128), ForeignKey("models.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("granted", String(64), ForeignKey("projects.id"), nullable=False),
)
