"""Images to vectors, and vectors into the store.

Edge to core: ``service`` (messages) -> ``ingest`` (the use case) -> ``inference`` (decode, then
batch) -> ``encoding`` (the encoder, its artefact, ONNX Runtime). ``flow`` is pure asyncio and knows
no images.
"""
