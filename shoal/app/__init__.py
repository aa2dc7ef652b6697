"""What knows all of Shoal: the command line, benchmarks, jobs, and what puts services together.

Nothing imports this package, and only it imports the services.
"""
