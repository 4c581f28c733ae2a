"""`python -m sandbox.supabase.proxy`: serve until SIGTERM."""

import uvicorn

from sandbox.supabase.proxy.server import create_app
from sandbox.supabase.proxy.settings import ProxySettings


def main() -> None:
    """Serve until SIGTERM."""
    settings = ProxySettings.from_environment()
    uvicorn.run(
        create_app(settings),
        host="127.0.0.1",
        port=settings.port,
        log_level="warning",
        access_log=False,
        date_header=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
