"""The subcommands of `lightning-s2s`, one per file; each imports its libraries when it runs."""
