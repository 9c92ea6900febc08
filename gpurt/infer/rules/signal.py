"""Fourier transforms, windows and the mel filter bank."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import F32, Inputs, attr_dtype, integer, like, need, optional
from gpurt.infer.shapes import axis, text
from gpurt.infer.table import rule
from gpurt.spec import Spec


@rule("DFT")
def dft(node: NodeView, inputs: Inputs) -> list[Spec]:
    x = need(node, inputs, 0)
    along = axis(-2 if optional(inputs, 2) is None else integer(node, inputs, 2, "axis"), x.rank)
    if x.rank < 2 or along == x.rank - 1:
        raise ValueError(f"DFT: axis {along} of {text(x.shape)} holds the parts of complex numbers")
    onesided, inverse = bool(node.attr("onesided", 0)), bool(node.attr("inverse", 0))
    length = x.shape[along]
    if optional(inputs, 1) is not None:
        length = integer(node, inputs, 1, "dft_length")
    elif onesided and inverse:
        length = 2 * (length - 1)
    shape = list(x.shape)
    shape[along] = length // 2 + 1 if onesided and not inverse else length
    shape[-1] = 1 if onesided and inverse else 2  # the inverse of a onesided transform is real
    return [like(x, shape)]


@rule("STFT")
def stft(node: NodeView, inputs: Inputs) -> list[Spec]:
    x, window = need(node, inputs, 0), optional(inputs, 2)
    if x.rank not in {2, 3}:
        raise ValueError(f"STFT: signal {text(x.shape)} must be [batch,length,1] or [batch,length,2]")
    batch, length = x.shape[:2]
    step = integer(node, inputs, 1, "frame_step")
    if optional(inputs, 3) is not None:
        frame = integer(node, inputs, 3, "frame_length")
    else:
        frame = length if window is None else window.shape[0]
    if step < 1 or not 0 < frame <= length:
        raise ValueError(f"STFT: frames of {frame} at steps of {step} do not fit a signal of {length}")
    bins = frame // 2 + 1 if node.attr("onesided", 1) else frame
    return [like(x, (batch, (length - frame) // step + 1, bins, 2))]


@rule("BlackmanWindow", "HammingWindow", "HannWindow")
def window(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [Spec(attr_dtype(node, "output_datatype", F32), (integer(node, inputs, 0, "size"),))]


@rule("MelWeightMatrix")
def mel_weight_matrix(node: NodeView, inputs: Inputs) -> list[Spec]:
    bins, length = integer(node, inputs, 0, "num_mel_bins"), integer(node, inputs, 1, "dft_length")
    return [Spec(attr_dtype(node, "output_datatype", F32), (length // 2 + 1, bins))]
