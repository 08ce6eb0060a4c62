"""ReFT adapters on vLLM, as it is released. Nothing here is imported by `import pyreft`."""
