"""Images to vectors, and vectors into the store.

Edge to core: ``service`` (messages) -> ``ingest`` (the use case) -> ``pipeline`` (decode, then
batch) -> ``encoder`` -> ``runtime`` (ONNX Runtime). ``batching``, ``admission`` and ``streaming``
are pure asyncio and know no images.
"""
