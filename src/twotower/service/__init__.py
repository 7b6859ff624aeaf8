"""Answering over HTTP: a bundle, the changes of items upon it, and how both are replaced without a stop."""

from ..errors import ConfigError

try:
    from .app import Service
    from .asking import Limits
    from .running import Arm, Settings, serve
    from .serving import Served, Serving
    from .tokens import Tokens
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in ("fastapi", "orjson", "starlette", "uvicorn"):
        raise
    raise ConfigError(f"serve: the library {error.name} is not installed: pip install 'twotower[serve]'") from error

__all__ = ["Arm", "Limits", "Served", "Service", "Serving", "Settings", "Tokens", "serve"]
