"""`make run`: serves with a token, and demonstrates without one."""

import os
import sys

from service.cli.console import NOT_EVERYTHING, run
from service.config.settings import load_settings
from service.errors import needs_extra
from service.telemetry.logs import configure_logging


def main() -> None:
    """Serve or demonstrate, and exit."""
    run(_serve_or_demonstrate)


def _serve_or_demonstrate() -> None:
    settings = load_settings(os.environ)
    if settings.api_token is not None or settings.api_token_file is not None:
        os.execv(sys.executable, [sys.executable, "-m", "service", "serve"])  # noqa: S606  this very program
    # The server's own news would hide the records; its errors are shown all the same.
    level = settings.log_level if "log_level" in settings.model_fields_set else "warning"
    configure_logging(level, settings.log_format)

    # gRPC takes its own settings when it is imported, and `run` has one for it.
    import uvloop  # noqa: PLC0415

    with needs_extra("sandbox", "the demonstration"):
        from service.cli.demo.demo import demonstrate  # noqa: PLC0415

    if not uvloop.run(demonstrate(settings)):
        sys.exit(NOT_EVERYTHING)


if __name__ == "__main__":
    main()
