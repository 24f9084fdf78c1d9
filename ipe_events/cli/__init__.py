"""The command line: one module per noun, each with one click group or command called ``command``.

``main`` maps nouns to modules without importing them, ``common`` holds what commands share (options, errors, the bus), and
``printers`` turns items into tables, JSON or YAML. Start-up is a budget (``ipe --help`` in 150 ms): modules of this package
import pydantic, nats, aiohttp and rich inside the function that needs them.
"""
