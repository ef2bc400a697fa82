"""Put a CLT in the place of a ViT's MLPs, through hooks.

At the replaced layers the replaced token rows of `hook_mlp_out` are overwritten by y^_l; other rows
keep MLP_l(current x_l). With `inputs="stream"` the codes of every source layer that writes to one
of these layers, replaced or not, come from the live, already altered stream; with "teacher" they
come from a clean pass of the same images. A skip connection reads x_l of the same pass. Sources
that write to no replaced layer are not encoded (of a per-layer transcoder all but the replaced
layers). With an error node the row becomes y_clean + (y^_live - y^_clean), which is bit-exact while
nothing else is altered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import get_args

from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint

from vit_clt.choices import Inputs, TokenKind, check_choice
from vit_clt.errors import InputError
from vit_clt.hooks.blocks import idle_mlps
from vit_clt.hooks.hooked_vit import HookedViT
from vit_clt.hooks.points import HOOK_IN, HOOK_OUT, READ_IN, FwdHooks
from vit_clt.hooks.rows import layer_list, rows_at, token_rows
from vit_clt.kernels.codes import Codes, DenseCodes
from vit_clt.transcoder.model import CrossLayerTranscoder


def replacement_hooks(
    clt: CrossLayerTranscoder,
    *,
    layers: int | Iterable[int],
    tokens: TokenKind = "all",
    inputs: Inputs = "stream",
    error_node: bool = False,
    clean: Mapping[str, Tensor] | ActivationCache | None = None,
) -> FwdHooks:
    """The replacement as a TransformerLens `fwd_hooks` list, which may be joined with other hooks.

    The list does not know the model: check a saved CLT with `check_fits(vit, clt)` first.

    Args:
        clt: the transcoder.
        layers: layers whose MLP output is overwritten.
        tokens: token rows that are overwritten: "cls", "register", "patch" or "all".
        inputs: which pass the codes come from, "stream" or "teacher".
        error_node: add the clean pass's reconstruction error back.
        clean: an activation cache of the same images with `blocks.{s}.ln2.hook_out` of the sources
            (and `blocks.{l}.hook_mlp_out` for error nodes). `inputs="teacher"` and
            `error_node=True` need it, because a hook list cannot make a clean pass. `replace_mlps`
            can.

    Raises:
        InputError: `clean` is missing or incomplete, or an argument is out of range.
    """
    replacement = _Replacement(clt, layers, tokens, inputs, error_node)
    if replacement.clean_names and clean is None:
        cause = "error_node=True" if error_node else 'inputs="teacher"'
        raise InputError(
            "clean",
            f"is None; {cause} needs an activation cache of the same images "
            "(or use replace_mlps, which makes it).",
        )
    for name in replacement.clean_names:
        if clean is not None and name not in clean:
            raise InputError("clean", f'lacks "{name}"; cache it in a pass of the same images.')
    replacement.clean = clean or {}
    return replacement.fwd_hooks()


@contextmanager
def replace_mlps(
    vit: HookedViT,
    clt: CrossLayerTranscoder,
    *,
    layers: int | Iterable[int],
    tokens: TokenKind = "all",
    inputs: Inputs = "stream",
    error_node: bool = False,
) -> Iterator[HookedViT]:
    """A context in which every forward of `vit` runs with the CLT in place of its MLPs.

    The clean pass that "teacher" inputs and error nodes need is made for each forward, on the
    images as edited by the `hook_input` hooks that were added before this context. Within the
    context, codes and reconstructions are hook points of the model: `clt.{s}.hook_codes` "batch
    token feature" for every source that is encoded, and `clt.{l}.hook_recon` "batch token d_model"
    for every replaced layer. While one of them has a hook, codes are made for all token rows and
    are dense. No hook is left behind, also after an exception.

    With tokens="all" a replaced block does not compute its MLP, unless another hook sees its output
    first.

    Raises:
        InputError: an argument is out of range, or the CLT belongs to another model.
    """
    check_fits(vit, clt)
    token_rows(tokens, vit.cfg.rows)
    replacement = _Replacement(clt, layers, tokens, inputs, error_node)
    replacement.vit = vit
    points = {f"clt.{s}.hook_codes": HookPoint() for s in replacement.sources}
    points |= {f"clt.{l}.hook_recon": HookPoint() for l in replacement.layers}
    if shadowed := points.keys() & vit.hook_dict.keys():
        raise InputError(f'"{min(shadowed)}" exists already; replace_mlps cannot be nested.')
    for name, point in points.items():
        point.name = name
        point.__dict__["rows"] = vit.cfg.rows
    replacement.points = points
    vit.hook_dict.update(points)
    vit.mod_dict.update(points)
    try:
        idle = replacement.layers if tokens == "all" else []
        with (
            vit.hooks(fwd_hooks=replacement.fwd_hooks()),
            idle_mlps(vit.blocks[l] for l in idle),
        ):
            yield vit
    finally:
        for name in points:
            vit.hook_dict.pop(name, None)
            vit.mod_dict.pop(name, None)
        replacement.forget()


def check_fits(vit: HookedViT, clt: CrossLayerTranscoder) -> None:
    """Refuse a CLT of another shape, on another device, or trained on another teacher.

    Raises:
        InputError: one of these differs. `clt.forget_teacher()` lifts the check of the teacher.
    """
    shape = (clt.config.n_layers, clt.config.d_model)
    expected = (vit.cfg.n_layers, vit.cfg.d_model)
    if shape != expected:
        raise InputError(
            f"the CLT is for {shape[0]} layers of width {shape[1]}; expected {expected[0]} layers "
            f"of width {expected[1]}, as in model {vit.cfg.model}."
        )
    device, vit_device = clt.b_enc.device, vit.device
    if device != vit_device and not clt.b_enc.is_meta:  # a meta CLT stands for its shape alone
        raise InputError(
            f"the CLT is on {device}; expected {vit_device}, where model {vit.cfg.model} is: "
            f'clt.to("{vit_device}").'
        )
    difference = teacher_difference(vit, clt)
    if difference is not None:
        raise InputError(f"{difference}; expected the same.", remedy="clt.forget_teacher()")


def teacher_difference(vit: HookedViT, clt: CrossLayerTranscoder) -> str | None:
    """What tells `vit` from the ViT that `clt` was trained on, in words.

    None where they are one by activation function, hook points and weights, or where the CLT
    records no ViT.
    """
    recorded = clt.config.teacher
    if recorded is None:
        return None
    identity = vit.identity()
    for field in ("activation", "hook_in", "hook_out", "weights_sha256"):
        if getattr(recorded, field) != getattr(identity, field):
            return (
                f"the CLT was trained on {recorded.model} ({recorded.pretrained}) with {field} "
                f"{getattr(recorded, field)[:24]}, this model has {getattr(identity, field)[:24]}"
            )
    return None


class _Replacement:
    """The hooks of one replacement, and the codes of the forward in progress."""

    def __init__(
        self,
        clt: CrossLayerTranscoder,
        layers: int | Iterable[int],
        tokens: TokenKind,
        inputs: Inputs,
        error_node: bool,
    ):
        check_choice("inputs", inputs, get_args(Inputs))
        self.clt = clt
        self.layers = layer_list(layers, clt.config.n_layers)
        self.sources = clt.config.sources(*self.layers)
        check_choice("tokens", tokens, get_args(TokenKind))
        self.tokens: TokenKind = tokens
        self.stream = inputs == "stream"
        self.error_node = error_node
        self.points: Mapping[str, HookPoint] = {}
        self.vit: HookedViT | None = None
        self.clean: Mapping[str, Tensor] | ActivationCache = {}
        self.clean_names: list[str] = []
        if error_node or not self.stream:
            self.clean_names += [HOOK_IN.format(l=s) for s in self.sources]
        if error_node:
            self.clean_names += [HOOK_OUT.format(l=l) for l in self.layers]
        self.forget()

    def forget(self) -> None:
        """Drop the codes of a forward, which must not outlive it."""
        self.begun = False
        self.codes: dict[int, Codes] = {}
        self.clean_codes: dict[int, Codes] = {}
        # x_l of the layer in progress, for a skip connection
        self.x: Tensor | None = None

    def fwd_hooks(self) -> FwdHooks:
        hooks: FwdHooks = [("hook_input", self._begin)]
        hooks += [(READ_IN.format(l=s), partial(self._read, layer=s)) for s in self.sources]
        hooks += [(HOOK_OUT.format(l=l), partial(self._write, layer=l)) for l in self.layers]
        return hooks

    def _begin(self, start: Tensor, hook: HookPoint) -> None:
        self.forget()
        self.begun = True
        self.rows = rows_at(hook, self.tokens)
        listening = any(point.has_hooks() for point in self.points.values())
        # codes and reconstructions are row-wise: only the written rows are encoded, unless a hook
        # of the CLT sees them
        self.encoded = slice(None) if listening else self.rows
        self.written = self.rows if listening else slice(None)
        if self.vit is not None and self.clean_names:
            self.clean = self.vit.clean_cache(start, self.clean_names)

    def _read(self, x: Tensor, hook: HookPoint, layer: int) -> None:
        if not self.begun:
            raise InputError("the blocks run outside a forward of the HookedViT; call vit(images).")
        up_to_here = [s for s in self.sources if s <= layer] if self.clean_names else []
        for source in up_to_here[len(self.clean_codes) :]:
            clean_x = self.clean[HOOK_IN.format(l=source)]
            if clean_x.shape != x.shape:
                raise InputError(
                    "clean",
                    f"has shape {tuple(clean_x.shape)}; expected {tuple(x.shape)}, the same "
                    "images.",
                )
            codes = self.clt.encode(self._clean(HOOK_IN, source), layer=source)
            if self._watched(source):
                # the live codes of this source are dense: an error node must be decoded alike
                codes = DenseCodes(codes.to_dense())
            self.clean_codes[source] = codes
            if not self.stream:
                self.codes[source] = self._expose(codes, source)
        if self.stream:
            self.x = x[:, self.encoded]
            self.codes[layer] = self._expose(self.clt.encode(self.x, layer=layer), layer)

    def _expose(self, codes: Codes, layer: int) -> Codes:
        if not self._watched(layer):
            return codes
        # a copy: an edit in place must not reach the clean codes of an error node
        return DenseCodes(self.points[f"clt.{layer}.hook_codes"](codes.to_dense().clone()))

    def _watched(self, layer: int) -> bool:
        point = self.points.get(f"clt.{layer}.hook_codes")
        return point is not None and point.has_hooks()

    def _write(self, y: Tensor, hook: HookPoint, layer: int) -> Tensor:
        if missing := [s for s in self.clt.config.sources(layer) if s not in self.codes]:
            raise InputError(
                f"this forward starts after layer {missing[0]}, whose codes the stream needs; "
                'start at layer 0, or use replacement_hooks with inputs="teacher" and clean.'
            )
        clean_x = self._clean(HOOK_IN, layer) if self.clean_names else None
        x = self.x if self.stream else clean_x
        recon = self.clt.decode(self.codes, target=layer, x=x)
        point = self.points.get(f"clt.{layer}.hook_recon")
        if point is not None:
            recon = point(recon)
        if self.error_node:
            clean_recon = self.clt.decode(self.clean_codes, target=layer, x=clean_x)
            recon = self._clean(HOOK_OUT, layer) + (recon - clean_recon)
        out = y.clone()
        out[:, self.rows] = recon[:, self.written].to(y.dtype)
        if layer == self.layers[-1]:
            self.forget()
        return out

    def _clean(self, point: str, layer: int) -> Tensor:
        return self.clean[point.format(l=layer)][:, self.encoded]
