"""Images given by URI: the server reads them, from allowed places only.

Nothing is allowed unless the configuration says so. A caller's URI is untrusted: it may try to
reach the machine's own files, its neighbours in the network, or a body without an end.
"""
