"""gRPC as every Shoal service uses it: server, interceptors, health, channel, error <-> status.

Knows the error tree and the contract's shared messages, and nothing about what a service does.
Import the modules: ``server``, ``channel``, ``status``, ``address``.
"""
