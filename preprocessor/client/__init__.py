"""A caller of the service, for programs and for the command line."""
