"""A frozen ViT with TransformerLens hooks, bit-exact to the model's own forward."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from vit_clt.choices import Gelu
from vit_clt.errors import InputError
from vit_clt.hooks.blocks import Recorder
from vit_clt.hooks.cache import ViTActivationCache
from vit_clt.hooks.pass_store import PassStore
from vit_clt.hooks.points import BLOCK_POINTS, HOOK_IN, HOOK_OUT, FwdHook
from vit_clt.hooks.rows import TokenRows
from vit_clt.hooks.towers.base import Tower
from vit_clt.hooks.towers.find import tower_of
from vit_clt.hooks.towers.load_open_clip import load_open_clip
from vit_clt.hooks.towers.names import HF, TIMM, recorded_name, split_name
from vit_clt.transcoder.config import TeacherIdentity

NamesFilter = Callable[[str], bool] | Sequence[str] | str | None


@dataclass(frozen=True)
class HookedViTConfig:
    """Geometry and identity of a hooked ViT, also read by TransformerLens' `ActivationCache`."""

    n_layers: int
    d_model: int
    n_heads: int
    image_size: tuple[int, int]
    """Height and width of an input image, in pixels."""
    rows: TokenRows
    """The token rows: the class token, registers, patches."""
    pools_cls: bool
    """Whether the image embedding is read from the class token alone."""
    d_embed: int
    activation: str
    """Class name of the MLPs' activation function."""
    family: str
    """The family of ViTs, as in docs/models.md."""
    model: str
    pretrained: str | None
    attn_only: bool = False
    normalization_type: str = "LN"

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Number of patches down and across; `rows.patch(i, j)` is the token row of a patch."""
        return self.rows.grid

    @property
    def n_tokens(self) -> int:
        """Number of token rows."""
        return self.rows.n_tokens


class HookedViT(HookedRootModule):
    """`vit(images)` equals the model's own embeddings bit for bit, with hooks on the way.

    The embeddings are those of `clip.encode_image(images, normalize=False)` (a CoCa's own
    `encode_image` normalises unless it is told not to), or, for a classifier, of
    `forward_head(..., pre_logits=True)`.

    Hook points, in order: `hook_input` (fires first in every forward, on its input), then per
    block `blocks.{l}.hook_resid_pre`, `.ln1.hook_out`, `.attn.hook_pattern` (only after
    `set_use_attn_pattern(True)`), `.hook_attn_out`, `.hook_resid_mid`, `.ln2.hook_out` (x_l),
    `.mlp.hook_in` (x_l again, after every edit of it), `.hook_mlp_out` (y_l), `.hook_resid_post`.

    x_l is edited at `ln2.hook_out` and read at `mlp.hook_in`. The model is put in eval mode and
    frozen. (Its bits are those of a frozen model: torch chooses the kernel of a matrix product by
    whether weights require gradients.) `state_dict` is the model's own.

    Args:
        loaded: a loaded model, whose family is found: a CLIP or CoCa of open_clip, its vision
            tower, a timm ViT, or a ViT of transformers (CLIP, SigLIP, ViT, DeiT, DINOv2, DINOv3).
            Wrappers of torch.compile, DataParallel and DDP are taken off.
        model: the name by which a CLT records the model.
        pretrained: the name of the weights, as recorded.
        preprocess: the model's preprocessing, from an image to "3 height width".
        tokenizer: of the text tower, where there is one.
        image_size: of images in pixels, for a model of transformers whose own size is another;
            positions are interpolated as the model itself does it.

    Raises:
        InputError: a model of no family here, with the name of what does not fit.
    """

    cfg: HookedViTConfig
    pass_store: PassStore | None = None
    """Keeps clean passes, for studies that go over the same images again."""

    def __init__(
        self,
        loaded: nn.Module,
        /,
        *,
        model: str = "in memory",
        pretrained: str | None = None,
        preprocess: Callable[[Any], Tensor] | None = None,
        tokenizer: Callable[[list[str]], Tensor] | None = None,
        image_size: int | tuple[int, int] | None = None,
    ):
        super().__init__()
        if isinstance(loaded, HookedViT):
            raise InputError("model", "is a HookedViT already; expected the model itself.")
        self._recorder = Recorder()
        self.tower = tower_of(loaded, self._recorder, image_size)
        self.model = self.tower.model.eval().requires_grad_(False)
        self.blocks = self.tower.blocks
        self._hook_points = nn.ModuleList(self.blocks)
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.hook_input = HookPoint()
        self.cfg = _config_of(self.tower, model, pretrained)
        self.setup()
        self.eval()

    @classmethod
    def from_open_clip(
        cls,
        model: str,
        pretrained: str | None = None,
        *,
        gelu: Gelu | None = None,
        device: str | torch.device = "cpu",
    ) -> HookedViT:
        """Load a CLIP in fp32.

        Args:
            model: an open_clip name ("ViT-B-32-quickgelu"), `local-dir:PATH` of a folder with
                open_clip_config.json and open_clip_model.safetensors, `hf-hub:ORG/NAME`, or
                "digits" or "adding", the teachers that come with this package.
            pretrained: an open_clip tag ("openai"), weights on disk (docs/weights.md), or
                "random:SEED" ("random" is seed 0) for weights that the same seed draws again; None
                leaves random weights of no seed. It must be None with `local-dir:` and `hf-hub:`,
                which have weights of their own.
            gelu: what weights on disk were trained with, where open_clip lists the model with both
                and nothing else says it.
            device: the device that the model is put on.

        Warns:
            UserWarning: weights of a file were renamed, stretched or left out, or have no text
                tower; then the `HookedViT` has none.

        Raises:
            InputError: an unknown name or tag, an architecture that does not fit (before anything
                is downloaded), missing or unreadable weights or such that are not finite numbers, a
                configuration that asks for more than sizes and known options, or a name whose
                activation function is not the one the weights were trained with.
        """
        loaded = load_open_clip(model, pretrained, gelu, device)
        return cls(
            loaded.model,
            model=model,
            pretrained=recorded_name(pretrained),
            preprocess=loaded.preprocess,
            tokenizer=loaded.tokenizer,
        )

    @classmethod
    def from_timm(
        cls,
        name: str,
        pretrained: str | None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
    ) -> HookedViT:
        """Load a plain ViT of timm in fp32, with its classifier and its preprocessing.

        Args:
            name: timm's name of the architecture ("vit_small_patch14_reg4_dinov2").
            pretrained: a tag of timm ("lvd142m"), weights on disk (docs/weights.md), whose
                classifier the model then has, or "random:SEED" ("random" is seed 0); None leaves
                random weights of no seed.
            image_size: of images in pixels, where it is not the model's; timm interpolates
                positions.
            device: the device that the model is put on.

        Raises:
            InputError: an unknown name or tag, an architecture that does not fit (before anything
                is downloaded), or weights that are missing, unreadable or of another model.
        """
        from vit_clt.hooks.towers.load_timm import load_timm

        loaded, preprocess = load_timm(name, pretrained, image_size)
        return cls(
            loaded.to(device),
            model=TIMM + name,
            pretrained=recorded_name(pretrained),
            preprocess=preprocess,
        )

    @classmethod
    def from_transformers(cls, name: str, *, device: str | torch.device = "cpu") -> HookedViT:
        """Load a plain ViT of transformers in fp32, with its preprocessing and its tokenizer.

        The class is the one that config.json names, and the weights are safetensors. Code beside
        them is never run. The size of images is that of the preprocessing.

        Args:
            name: the name of a repository of the Hub, or the path of a folder. A colon and the name
                of a part ("llava-hf/llava-1.5-7b-hf:vision_tower") load the vision tower alone out
                of a model of images and language.
            device: the device that the model is put on.

        Raises:
            InputError: a class that does not fit (before weights are read or downloaded), sizes out
                of range, weights that are missing, incomplete or not finite, or a preprocessing
                that gives images of no fixed size.
        """
        from vit_clt.hooks.towers.load_transformers import load_transformers

        loaded = load_transformers(name)
        return cls(
            loaded.model.to(device),
            model=HF + name,
            preprocess=loaded.preprocess,
            tokenizer=loaded.tokenizer,
            image_size=loaded.image_size,
        )

    @classmethod
    def load(
        cls,
        model: str,
        pretrained: str | None = None,
        *,
        gelu: Gelu | None = None,
        device: str | torch.device = "cpu",
    ) -> HookedViT:
        """Load a ViT by the name that a CLT records.

        Args:
            model: `hf:NAME` of `from_transformers`, `timm:NAME` or `timm:NAME:CHECKPOINT` of
                `from_timm`, or a name of `from_open_clip`.
            pretrained: a tag, weights on disk, or "random:SEED"; None leaves random weights of no
                seed. It must be None with `hf:`, which has weights of its own.
            gelu: as of `from_open_clip`; other families need none.
            device: the device that the model is put on.

        Raises:
            InputError: what the loader of the name refuses, or a checkpoint that is named twice.
        """
        name, pretrained = split_name(model, pretrained)
        if name.startswith(HF):
            if pretrained is not None:
                raise InputError(
                    "pretrained",
                    f'is "{pretrained}"; model "{model}" carries its own weights, expected none.',
                )
            return cls.from_transformers(name.removeprefix(HF), device=device)
        if name.startswith(TIMM):
            return cls.from_timm(name.removeprefix(TIMM), pretrained, device=device)
        return cls.from_open_clip(name, pretrained, gelu=gelu, device=device)

    # ---- running ----------------------------------------------------------------------------

    def forward(
        self,
        images: Float[Tensor, "batch *shape"],
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
    ) -> Float[Tensor, "batch *out"]:
        """Image embeddings "batch d_embed", not normalised.

        Args:
            images: "batch 3 height width"; with `start_at_layer`, that block's `hook_resid_pre`,
                "batch token d_model".
            start_at_layer: the first block that runs; by default the first of the model.
            stop_at_layer: return the residual stream "batch token d_model" before this block.
                Negative layers count from the end, as in TransformerLens.

        Raises:
            InputError: an input of another shape or dtype, or a layer out of range.
        """
        for name, layer in (("start_at_layer", start_at_layer), ("stop_at_layer", stop_at_layer)):
            if layer is not None and not -self.cfg.n_layers <= layer <= self.cfg.n_layers:
                raise InputError(name, f"is {layer}; expected 0 to {self.cfg.n_layers}.")
        if start_at_layer is None:
            self._check_images(images)
        elif images.shape[1:] != (self.cfg.n_tokens, self.cfg.d_model):
            raise InputError(
                f"the residual stream to start from has shape {tuple(images.shape)}; expected "
                f"(batch, {self.cfg.n_tokens}, {self.cfg.d_model})."
            )
        images = self._recorder(self.hook_input, images)
        resid = self.tower.embed(images) if start_at_layer is None else images
        for block in self.blocks[start_at_layer:stop_at_layer]:
            resid = block(resid)
        if stop_at_layer is not None:
            return resid
        return self.head(resid)

    def head(self, resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch *out"]:
        """Embeddings from the output of the last block: LayerNorm, pooling and projection.

        No hook fires. If `cfg.pools_cls`, only row 0 counts, and "batch 1 d_model", the row of the
        class token alone, gives the same embeddings.
        """
        return self.tower.head(resid)

    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch d"]:
        """Image embeddings, not normalised; the same as calling the model."""
        return self(images)

    def encode_text(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch d_embed"]:
        """Text embeddings of token ids (`vit.tokenizer(["a photo of a cat."])`), not normalised.

        Raises:
            InputError: the model has no text tower.
        """
        return self.text_tower.encode_text(tokens, normalize=False)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The factor that turns cosines into logits, exp(clip.logit_scale).

        Raises:
            InputError: the model has no text tower.
        """
        return self.text_tower.logit_scale.exp()

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """What is added to every logit; None for a model without one (SigLIP has one).

        Raises:
            InputError: the model has no text tower.
        """
        return getattr(self.text_tower, "logit_bias", None)

    @property
    def has_text_tower(self) -> bool:
        """Whether the model embeds texts beside images."""
        return self.tower.text is not None

    @property
    def device(self) -> torch.device:
        """Where the vision tower is."""
        return self.tower.device

    @property
    def text_tower(self) -> Any:
        """What encodes texts, with the names that open_clip has: `encode_text`, `logit_scale`.

        Raises:
            InputError: the model has no text tower.
        """
        text = self.tower.text
        if text is None:
            raise InputError("model", f"is {self.cfg.model}, which has no text tower.")
        return text

    def clean_cache(
        self, images: Float[Tensor, "batch 3 height width"], names: Sequence[str]
    ) -> dict[str, Tensor]:
        """The unaltered activations at the hook points `names`, as of `run_clean`."""
        return self.run_clean(images, names)[1]

    def run_clean(
        self, images: Float[Tensor, "batch 3 height width"], names: Sequence[str]
    ) -> tuple[Float[Tensor, "batch *out"], dict[str, Tensor]]:
        """The unaltered embeddings, and the activations at the hook points `names`. No hook fires.

        Where the model has a `pass_store`, a pass that it keeps is read, to the same bits.

        Raises:
            InputError: images of another shape, or a name that no hook point of the model has.
        """
        if self.pass_store is not None:
            return self.pass_store.run(images, names, self._run_clean)
        return self._run_clean(images, names)

    def _run_clean(self, images: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        recorded: dict[str, Tensor] = {}
        self._recorder.values, self._recorder.names = recorded, frozenset(names)
        try:
            embeddings = self.forward(images)
        finally:
            self._recorder.values, self._recorder.names = None, ()
        for name in names:
            if name not in recorded:
                raise InputError(f'no activation of the model itself is named "{name}".')
        return embeddings, {name: recorded[name] for name in names}

    def run_with_cache(  # type: ignore[override]
        self, *args: Any, names_filter: NamesFilter = None, **kwargs: Any
    ) -> tuple[Tensor, ViTActivationCache]:
        """TransformerLens' `run_with_cache`; returns (output, `ViTActivationCache`).

        Raises:
            InputError: the filter names a hook point that does not exist, or matches none; or
                `return_type`, as a ViT puts out embeddings alone.
        """
        if "return_type" in kwargs:
            raise InputError(
                "return_type",
                f"is {kwargs['return_type']!r}; expected none, as a HookedViT returns embeddings.",
            )
        if names_filter is not None:
            if callable(names_filter):
                names = [name for name in self.hook_dict if names_filter(name)]
            else:
                names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
            if not names:
                raise InputError(
                    "names_filter", "matches no hook point; see vit.hook_dict for names."
                )
            self._check_names(names)
            names_filter = names
        output, cache = super().run_with_cache(*args, names_filter=names_filter, **kwargs)
        if not cache:
            raise InputError("names_filter", "matches no hook point that this forward reached.")
        return output, ViTActivationCache(cache, self)

    @contextmanager
    def hooks(  # type: ignore[override]
        self,
        fwd_hooks: Sequence[FwdHook] = (),
        bwd_hooks: Sequence[FwdHook] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[HookedViT]:
        """TransformerLens' context manager of temporary hooks; it refuses unknown names.

        Raises:
            InputError: a hook is for no hook point of the model.
        """
        for name, _ in (*fwd_hooks, *bwd_hooks):
            if isinstance(name, str):
                self._check_names([name])
            elif not any(name(point) for point in self.hook_dict):
                raise InputError("a hook's name function matches no hook point; see vit.hook_dict.")
        with super().hooks(list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts):
            yield self

    # ---- set-up -----------------------------------------------------------------------------

    def setup(self) -> None:
        """Give hook points their TransformerLens names."""
        points = {"hook_input": self.hook_input}
        for l, block in enumerate(self.blocks):
            for attribute, name in BLOCK_POINTS.items():
                if attribute != "hook_pattern" or block.use_attn_pattern:
                    points[f"blocks.{l}.{name}"] = getattr(block, attribute)
        for name, point in points.items():
            point.name = name
            point.__dict__["rows"] = self.cfg.rows  # hooks find the rows of a kind by it
        self.hook_dict = dict(points)
        self.mod_dict = dict(points)

    def set_use_attn_pattern(self, use: bool) -> None:
        """Compute attention unfused and give it the hook point `attn.hook_pattern`, or undo that.

        It is off by default: unfused attention differs from the fused kernel's by about 1e-6.
        """
        for block in self.blocks:
            block.use_attn_pattern = use
            block.hook_pattern.remove_hooks("both", including_permanent=True)
        self.setup()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own state dict, key for key, as hook points have no tensors."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of the model itself, whose passes are then others than those kept."""
        self.pass_store = None
        return self.model.load_state_dict(*args, **kwargs)

    def identity(self) -> TeacherIdentity:
        """Name, activation function, hook points and weight hash, for a CLT to record."""
        return TeacherIdentity(
            model=self.cfg.model,
            pretrained=self.cfg.pretrained,
            activation=self.cfg.activation,
            hook_in=HOOK_IN,
            hook_out=HOOK_OUT,
            weights_sha256=self._weights_sha256(),
            family=self.cfg.family,
        )

    def _weights_sha256(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tower.identity_tensors().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _check_images(self, images: Tensor) -> None:
        expected = (3, *self.cfg.image_size)
        if images.dtype != self.tower.dtype:
            raise InputError(
                "images", f"are {images.dtype}; expected {self.tower.dtype}, as the weights."
            )
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise InputError(
                "images",
                f"have shape {tuple(images.shape)}; expected (batch, {expected[0]}, "
                f"{expected[1]}, {expected[2]}).",
            )

    def _check_names(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.hook_dict:
                hint = "call vit.set_use_attn_pattern(True) first" if "hook_pattern" in name else ""
                raise InputError(
                    f'no hook point is named "{name}"; {hint or "see vit.hook_dict for names"}.'
                )


def _config_of(tower: Tower, name: str, pretrained: str | None) -> HookedViTConfig:
    return HookedViTConfig(
        n_layers=len(tower.blocks),
        d_model=tower.d_model,
        n_heads=tower.n_heads,
        image_size=tower.image_size,
        rows=tower.rows,
        pools_cls=tower.pools_cls,
        d_embed=tower.d_embed,
        activation=tower.activation,
        family=tower.family,
        model=name,
        pretrained=pretrained,
    )
