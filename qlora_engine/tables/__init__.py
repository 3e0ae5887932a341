"""The tables of a job file, one module for each or for two that belong together; `qlora_engine.config` puts them together."""
