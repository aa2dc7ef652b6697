"""gRPC as every Shoal service uses it: server, interceptors, health, channels, errors as statuses.

Knows the error tree and the contract's shared messages, and nothing of any service's work.
Import the modules: ``server``, ``channel``, ``status``, ``address``.
"""
