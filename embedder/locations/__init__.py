"""Images that are given by where they lie: read by the server, from allowed places only.

Nothing is allowed unless the configuration says so. What a caller names is untrusted: it may try
to reach the machine's own files, its neighbours in the network, or endless bodies.
"""
