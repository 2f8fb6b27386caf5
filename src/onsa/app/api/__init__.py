"""The HTTP API: OpenAI's paths and objects, each a thin way to the functions that the command line calls as well."""
