"""Makes encoder artefacts out of published models. Needs the ``export`` extra; serving does not.

``open_clip.export_open_clip``   any open_clip model, with its text tower and tokenizer
``timm.export_timm``             any timm model: DINO, DINOv2, ResNet, ...; local checkpoints too
``variants.make_variant``        an artefact in float16 or int8, measured and gated
``mix.make_mix``                 several artefacts as one encoder
``efficientnet_lite0``           the encoder that ships with Shoal; a script

Each takes a frozen request and returns the artefact that it wrote, loaded and verified. An
artefact is written only if it passes the gates (``gates``): it must give its model's vectors.
"""
