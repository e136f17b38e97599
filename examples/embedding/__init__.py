"""One small job inside each kind of host: Starlette, FastAPI, Litestar, aiohttp, plain asyncio, and a notebook."""
