"""open_clip models, exported for real, against open_clip itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from tiny_clip import register
from tokenizers import Tokenizer as Made
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from embedder.encoding.artefact import EncoderArtefact
from embedder.encoding.encoder import Encoder
from embedder.encoding.manifest import TextSpec
from embedder.encoding.runtime import RuntimeConfig
from embedder.encoding.tokenizer import Tokenizer
from embedder.export.open_clip import (
    OpenClipRequest,
    artefact_name,
    export_open_clip,
    to_preprocessing,
)
from embedder.export.pictures import pictures
from embedder.export.tokenizers import write_tokenizer
from embedder.images.preprocess import ImageLimits, decode
from shoal.errors import ArtefactError, ExportRefused

TEXTS = [
    "a dog",
    "A photo of TWO dogs.",
    "café — naïve, Straße",
    "日本語のテキスト",
    "emoji 😀😀 ❤️ 👨‍👩‍👧",
    "&amp;lt;b&gt; &eacute; html",
    "x" * 500,
    "word " * 300,
    "don't we'll I'm it's they've you're he'd",
    "1234567 12,345.67 ²½Ⅷ٣",
    "  spaces\t\ttabs\nnewline\u00a0nbsp ",
    "<start_of_text> hi <end_of_text>",
    "ÃƒÂ©tÃƒÂ© mojibake",
    "İstanbul ǅ ß",
    "a\u0301b\u200d zero\ufeffwidth",
    "!!!???...---___ #hash @at $5 €5",
    "สวัสดี नमस्ते مرحبا",
    "x\x00y\x07z",
    "a",
    "",
]


def reference(seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return open_clip.create_model("tiny-quickgelu", pretrained=None).eval()


def test_export_gives_open_clips_own_vectors(clip: EncoderArtefact) -> None:
    """From files to vectors: open_clip's transform and model, to a cosine of 0.999 and more."""
    model = reference()
    transform = image_transform_v2(
        PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False
    )
    encoder = Encoder.open(clip.directory, RuntimeConfig())
    (spec,) = encoder.preprocessings
    assert spec.matte == "#ffffff"
    tests = pictures(64, matte=spec.matte)
    pixels = np.stack([decode(p.data, limits=ImageLimits(), spec=spec) for p in tests])
    ours = encoder.embed([pixels])
    with torch.no_grad():
        batch = torch.stack([transform(p.seen) for p in tests])
        theirs = model.encode_image(batch, normalize=True).numpy()
    cosines = (ours * theirs).sum(axis=1)
    assert cosines.min() >= 0.999
    others = [theirs[i] @ theirs[j] for i in range(4) for j in range(i)]
    assert min(others) < 0.99, "random weights must tell images apart for this to say much"
    centred = ours - ours.mean(axis=0)
    truth = theirs - theirs.mean(axis=0)
    for mine, wanted in zip(centred, truth, strict=True):
        assert mine @ wanted / np.linalg.norm(mine) / np.linalg.norm(wanted) >= 0.95


def test_export_batch_equals_singles(clip: EncoderArtefact) -> None:
    """A vector does not depend on the size of its batch: 1, 7 or 64."""
    encoder = Encoder.open(clip.directory, RuntimeConfig())
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 64, 3), np.uint8)
    alone = np.concatenate([encoder.embed([pixels[i : i + 1]]) for i in range(64)])
    for size in (7, 64):
        np.testing.assert_allclose(encoder.embed([pixels[:size]]), alone[:size], atol=1e-5)


def test_text_tower_gives_open_clips_own_vectors(clip: EncoderArtefact) -> None:
    """Tokens are open_clip's to the last one, and vectors too, for texts of every kind."""
    encoder = Encoder.open(clip.directory, RuntimeConfig())
    tokenizer = open_clip.get_tokenizer("tiny-quickgelu")
    tokens = tokenizer(TEXTS)
    spec = clip.manifest.text
    assert spec is not None
    assert clip.tokenizer is not None
    np.testing.assert_array_equal(Tokenizer(clip.tokenizer, spec).encode(TEXTS), tokens.numpy())
    with torch.no_grad():
        truth = reference().encode_text(tokens, normalize=True).numpy()
    made = encoder.embed_texts(TEXTS)
    np.testing.assert_allclose((made * truth).sum(axis=1), 1, atol=1e-5)
    assert (truth @ truth.T).min() < 0.9


def test_artefact_says_where_it_came_from(clip: EncoderArtefact) -> None:
    """Library, version, model and weights are in it; the license is what was given, or unknown."""
    source = clip.manifest.source
    assert (source.package, source.model) == ("open_clip_torch", "tiny-quickgelu")
    assert source.weights == "random, seed 1"
    assert clip.license == "unknown"
    assert clip.manifest.measured is not None
    assert clip.manifest.measured.min_cosine >= 0.9999


def test_activation_is_the_models(clip: EncoderArtefact, tmp_path: Path) -> None:
    """The same weights under GELU are another encoder: -quickgelu in a name is no decoration."""
    register(tmp_path / "configs", "tiny-gelu", quick_gelu=False)
    state = tmp_path / "weights.pt"
    wrapped = {f"module.{name}": tensor for name, tensor in reference().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, state)  # as open_clip's training leaves it
    plain, quick = (
        export_open_clip(OpenClipRequest(name, tmp_path / name, checkpoint=state, no_text=True))
        for name in ("tiny-gelu", "tiny-quickgelu")
    )
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    vectors = [
        Encoder.open(made.directory, RuntimeConfig()).embed([pixels])
        for made in (clip, quick, plain)
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


def test_weights_of_the_other_activation_are_refused(tmp_path: Path) -> None:
    """OpenAI's weights under a model without -quickgelu are refused, with the right name."""
    with pytest.raises(ExportRefused, match="export ViT-B-32-quickgelu"):
        export_open_clip(OpenClipRequest("ViT-B-32", tmp_path / "x", pretrained="openai"))
    with pytest.raises(ExportRefused, match="it has openai"):
        export_open_clip(OpenClipRequest("RN50x64-quickgelu", tmp_path / "x", pretrained="gone"))


@pytest.mark.parametrize(
    "weights",
    [{}, {"random_seed": 1, "pretrained": "openai"}, {"checkpoint": Path("x"), "random_seed": 0}],
)
def test_weights_are_named_once(tmp_path: Path, weights: dict[str, Any]) -> None:
    """Neither no weights nor two kinds of them: random ones are never taken silently."""
    with pytest.raises(ExportRefused, match="expected weights: one of"):
        export_open_clip(OpenClipRequest("ViT-B-32", tmp_path / "x", **weights))


def test_unknown_model_is_refused(tmp_path: Path) -> None:
    """A name that open_clip does not know is refused, and nothing is written."""
    with pytest.raises(ExportRefused, match="no model 'ViT-Z-1'"):
        export_open_clip(OpenClipRequest("ViT-Z-1", tmp_path / "x", random_seed=0))
    assert list(tmp_path.iterdir()) == []


def test_existing_directory_is_left_alone(clip: EncoderArtefact) -> None:
    """An export writes over nothing."""
    with pytest.raises(ExportRefused, match="exists: expected a directory that does not"):
        export_open_clip(OpenClipRequest("tiny-quickgelu", clip.directory, random_seed=1))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"resize_mode": "longest"}, "resize_mode"),
        ({"interpolation": "random"}, "interpolation"),
        ({"mode": "L"}, "mode"),
        ({"size": (64, 32)}, "size"),
    ],
)
def test_preprocessing_without_a_counterpart_is_refused(change: dict[str, Any], name: str) -> None:
    """What Shoal would do differently is refused by name, not approximated."""
    config = {
        "size": 64,
        "mode": "RGB",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    assert to_preprocessing(config).resize.size == 64
    with pytest.raises(ExportRefused, match=f"preprocessing {name}: expected"):
        to_preprocessing({**config, **change})


def test_squash_is_a_stretch(tmp_path: Path) -> None:
    """A model that squashes images is exported so, and passes its gates."""
    name = register(
        tmp_path / "configs",
        "tiny-squash",
        vision_cfg={"image_size": 48, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    )
    model = open_clip.create_model(
        name, pretrained=None, force_preprocess_cfg={"resize_mode": "squash"}
    )
    preprocessing = to_preprocessing(dict(open_clip.get_model_preprocess_cfg(model)))
    assert preprocessing.resize.mode == "stretch"
    assert preprocessing.matte is None
    transform = image_transform_v2(
        PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False
    )
    (mean, scale) = (
        np.array(v) for v in (preprocessing.normalise.mean, preprocessing.normalise.scale)
    )
    for picture in pictures(48):
        ours = decode(picture.data, limits=ImageLimits(), spec=preprocessing)
        theirs = transform(picture.seen).numpy().transpose(1, 2, 0) * scale + mean
        assert np.abs(ours - theirs).mean() < 2.5, picture.name


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (open_clip.tokenizer.SimpleTokenizer(reduction_mask="simple"), "a reduction mask"),
        (object(), "being a object"),
    ],
)
def test_tokenizer_that_a_file_cannot_say_is_refused(
    tokenizer: object, why: str, tmp_path: Path
) -> None:
    """What it does is named, and the way round."""
    with pytest.raises(ExportRefused, match=f"{why}; --no-text leaves it out"):
        write_tokenizer(tokenizer, tmp_path / "tokenizer.json")


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_cleaning_is_open_clips(clean: str, tmp_path: Path) -> None:
    """Each of open_clip's three ways to clean a text gives its tokens."""
    theirs = open_clip.tokenizer.SimpleTokenizer(clean=clean)
    rule, pad_id = write_tokenizer(theirs, tmp_path / "tokenizer.json")
    assert (rule, pad_id) == (clean, 0)
    spec = TextSpec.model_construct(context_length=77, pad_id=pad_id, clean=rule)
    ours = Tokenizer(tmp_path / "tokenizer.json", spec)
    np.testing.assert_array_equal(ours.encode(TEXTS), theirs(TEXTS).numpy())


def hugging_face(folder: Path, **text: Any) -> str:
    """Teaches open_clip a small SigLIP, whose tokenizer lies in ``folder`` as from the hub."""
    made = Made(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator(
        TEXTS * 3,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>"),
    )
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made, pad_token="</s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    return register(
        folder / "configs",
        "tiny-siglip",
        quick_gelu=False,
        text_cfg={
            "context_length": 16,
            "vocab_size": made.get_vocab_size(),
            "hf_tokenizer_name": str(folder / "tokenizer"),
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 64,
            "heads": 2,
            "layers": 1,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            **text,
        },
    )


def test_hugging_face_tokenizer_comes_along(tmp_path: Path) -> None:
    """SigLIP's kind of text tower: tokens and vectors are open_clip's, without its library."""
    name = hugging_face(tmp_path)
    made = export_open_clip(OpenClipRequest(name, tmp_path / "out", random_seed=3))
    spec = made.manifest.text
    assert spec is not None
    assert (spec.clean, spec.pad_id, spec.context_length) == ("canonicalize", 1, 16)
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    assert len({tuple(row.tolist()) for row in tokens}) > len(TEXTS) / 2
    torch.manual_seed(3)
    model = open_clip.create_model(name, pretrained=None).eval()
    with torch.no_grad():
        truth = model.encode_text(tokens, normalize=True).numpy()
    vectors = Encoder.open(made.directory, RuntimeConfig()).embed_texts(TEXTS)
    np.testing.assert_allclose((vectors * truth).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ({"tokenizer_mode": "clips"}, "tokenizer_mode"),
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, "strip_sep_token"),
        ({"hf_tokenizer_name": "./nowhere"}, "cannot be had"),
    ],
)
def test_text_tower_without_a_tokenizer_is_refused(
    text: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is named, and the option that leaves it out; no tower is exported for nothing."""
    monkeypatch.setattr(torch.onnx, "export", None)
    name = hugging_face(tmp_path, **text)
    with pytest.raises(ExportRefused, match=why) as refused:
        export_open_clip(OpenClipRequest(name, tmp_path / "out", random_seed=1))
    assert "--no-text leaves" in refused.value.message
    assert not (tmp_path / "out").exists()


def test_text_tower_is_left_out_when_told(tmp_path: Path) -> None:
    """Only images remain: its tokenizer is not even looked for."""
    name = hugging_face(tmp_path, hf_tokenizer_name="./nowhere")
    made = export_open_clip(OpenClipRequest(name, tmp_path / "out", random_seed=1, no_text=True))
    assert made.manifest.text is None
    assert list(made.manifest.files.entries()) == ["image"]


def test_tokenizer_cuts_to_the_context(tmp_path: Path) -> None:
    """A long text ends with the end mark at any context length, as open_clip cuts it."""
    theirs = open_clip.tokenizer.SimpleTokenizer()
    write_tokenizer(theirs, tmp_path / "tokenizer.json")
    for length in (5, 32):
        spec = TextSpec.model_construct(context_length=length, pad_id=0, clean="lower")
        ours = Tokenizer(tmp_path / "tokenizer.json", spec)
        np.testing.assert_array_equal(
            ours.encode(TEXTS), theirs(TEXTS, context_length=length).numpy()
        )


def test_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    """A file that is no tokenizer is named."""
    (tmp_path / "tokenizer.json").write_text("{}")
    spec = TextSpec.model_construct(context_length=8, pad_id=0, clean="lower")
    with pytest.raises(ArtefactError, match=r"tokenizer\.json: expected a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json", spec)


def test_names_can_name_a_vector() -> None:
    """Names of models and tags become names of encoders."""
    assert artefact_name("ViT-B-32-quickgelu", "openai") == "vit-b-32-quickgelu-openai"
    assert artefact_name("hf-hub:timm/X y", "") == "hf-hub-timm-x-y"


def test_name_is_checked_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that an encoder cannot have costs no export."""
    monkeypatch.setattr(open_clip, "create_model", None)
    with pytest.raises(ExportRefused, match=r"name: expected 1 to 64 .*, got 'A\+B'"):
        export_open_clip(OpenClipRequest("ViT-B-32", tmp_path / "x", random_seed=0, name="A+B"))


def test_weights_that_cannot_be_had_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network: the model, its tag, and why."""

    def create(*_: Any, **__: Any) -> None:
        msg = "Failed to download weights for tag 'openai':\nno network"
        raise RuntimeError(msg)

    monkeypatch.setattr(open_clip, "create_model", create)
    request = OpenClipRequest("ViT-B-32-quickgelu", tmp_path / "x", pretrained="openai")
    told = (
        "^open_clip cannot make the model ViT-B-32-quickgelu with the weights 'openai': Failed to "
        "download weights for tag 'openai': no network$"
    )
    with pytest.raises(ExportRefused, match=told):
        export_open_clip(request)
