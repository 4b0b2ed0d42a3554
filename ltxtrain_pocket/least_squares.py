"""Start the video VAE in closed form: principal components down, ridge regressions up.

A deep stack of convolutions learns the mean of a colour only slowly. So each downsampler of the encoder starts as the
principal components of what reaches it, and each upsampler of the decoder as the regression of finer components on
coarser ones, with the 27 neighbours that its kernel sees. Gradient descent then goes on from something that works.

Letters: N clips, C channels, T H W at the size of the stage. Where RMS norm and SiLU stand in the way of a linear
map, a large constant in every channel keeps both near a straight line.
"""

from typing import Any

import torch
from torch import Tensor, nn

# In deviations of the features that pass the norm.
OFFSET = 5.0
ROWS = 25_000
PLACES = 40_000
# Of the mean square of each input of a regression.
RIDGE, NEIGHBOUR_RIDGE = 0.01, 0.5
PATCH = 4


@torch.no_grad()
def solve(vae: Any, pixels: Tensor, generator: torch.Generator, noise: float) -> Tensor:
    """Set the weights of vae; the latents that it then makes of the pixels.

    pixels [N, 3, T, H, W] in -1..1, T 1 modulo 8; noise: share of each latent's deviation that decoding has to bear.
    """
    _silence(vae)
    latents = _solve_encoder(vae.encoder, pixels)
    _solve_decoder(vae.decoder, latents, pixels, generator, noise)
    return latents


def _silence(vae: nn.Module) -> None:
    """Convolutions are zero, but for the first of each residual layer, whose second will find what it can use."""
    generator = torch.Generator().manual_seed(0)
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv3d):
            assert module.bias is not None
            module.weight.zero_()
            module.bias.zero_()
            if name.endswith("conv1.conv"):
                scale = module.weight[0].numel() ** -0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * scale)


def _solve_encoder(encoder: Any, pixels: Tensor) -> Tensor:
    """The latents [N, 128, T, H, W] that it makes of the pixels."""
    patches = _patches(pixels)
    components, mean = _principal(patches, 16)
    weight, bias = encoder.conv_in.conv.weight, encoder.conv_in.conv.bias
    # Neighbouring channels are averaged by the first downsampler's shortcut: opposite signs take it away.
    weight[0:32:2, :, 2, 1, 1], weight[1:32:2, :, 2, 1, 1] = components, -components
    bias[0:32:2], bias[1:32:2] = -components @ mean, components @ mean
    hidden = _centre(encoder.conv_in.conv, patches)
    for block in encoder.down_blocks:
        down = block.downsamplers[0]
        convolution = down.conv.conv
        components, mean = _principal(hidden, convolution.out_channels)
        convolution.weight[:, :, 2, 1, 1] = components
        convolution.bias.copy_(-components @ mean)
        hidden = _down(down, hidden)
    # Bring what passes the norm to deviation 1 about OFFSET.
    deviation = hidden.transpose(0, 1).flatten(1).std(1).mean()
    scale = 1 / deviation
    encoder.conv_in.conv.weight.mul_(scale)
    encoder.conv_in.conv.bias.mul_(scale)
    for block in encoder.down_blocks:
        block.downsamplers[0].conv.conv.bias.mul_(scale)
    encoder.down_blocks[-1].downsamplers[0].conv.conv.bias.add_(OFFSET)
    hidden = encoder.conv_act(encoder.norm_out(hidden * scale + OFFSET))
    components, mean = _principal(hidden, 128)
    spread = (components @ (hidden.transpose(0, 1).flatten(1) - mean[:, None])).std(1)
    # Half way to equal deviations: details count, but less than what they are details of.
    components = components * (spread[:, None].clamp(min=spread[0] * 0.01) ** -0.5) / spread[0] ** 0.5
    convolution = encoder.conv_out.conv
    convolution.weight[:128, :, 2, 1, 1] = components
    convolution.bias[:128] = -components @ mean
    convolution.bias[128] = -6.0
    return _centre(convolution, hidden)[:, :128]


def _solve_decoder(decoder: Any, latents: Tensor, pixels: Tensor, generator: torch.Generator, noise: float) -> None:
    # conv_in hands the latents on.
    width = decoder.conv_in.conv.out_channels
    decoder.conv_in.conv.weight[:, :, 1, 1, 1] = torch.eye(128)[:width]
    noisy = latents + torch.randn(latents.shape, generator=generator) * noise * _spread(latents)
    hidden = torch.cat([decoder.conv_in(clip[None], causal=False) for clip in noisy])
    for block in decoder.up_blocks:
        up = block.upsamplers[0]
        stride: tuple[int, int, int] = up.stride
        channels = up.conv.conv.out_channels // (stride[0] * stride[1] * stride[2])
        shape = hidden.shape
        size = ((shape[2] - 1) * stride[0] + 1, shape[3] * stride[1], shape[4] * stride[2])
        target = _compressed(_blocks(pixels, size), channels)
        last = block is decoder.up_blocks[-1]
        if last:
            target = target / target.std() + OFFSET
        # [N, C, T, H, W] -> the layout before the shuffle, its first frames standing for those that are cut off.
        front = target[:, :, :1].expand(-1, -1, stride[0] - 1, -1, -1)
        wanted = _folded(torch.cat([front, target], 2), stride)
        _regress(up.conv.conv, hidden, wanted, generator)
        hidden = torch.cat([up(clip[None], causal=False) for clip in hidden])
    hidden = decoder.conv_act(decoder.norm_out(hidden))
    # The patches of the decoder lie row by row within a column, as those of the encoder do.
    _regress(decoder.conv_out.conv, hidden, _patches(pixels), generator)


@torch.no_grad()
def encode_by_components(encoder: Any, pixels: Tensor) -> Tensor:
    """The encoder's latents [N, 128, F, h, w] in a tenth of the time, as long as only its middle taps are set."""
    # The first two convolutions as one, with 16 channels in place of 128 between them; the shortcut is zero there.
    first, second = encoder.conv_in.conv, encoder.down_blocks[0].downsamplers[0].conv.conv
    onto = second.weight[:, :, 2, 1, 1]
    components = torch.einsum("kc,ncthw->nkthw", onto @ first.weight[:, :, 2, 1, 1], _patches(pixels))
    offset = onto @ first.bias + second.bias
    hidden = _folded(components + offset.view(1, -1, 1, 1, 1), encoder.down_blocks[0].downsamplers[0].stride)
    for block in encoder.down_blocks[1:]:
        hidden = _down(block.downsamplers[0], hidden)
    return _centre(encoder.conv_out.conv, encoder.conv_act(encoder.norm_out(hidden)))[:, :128]


def _centre(convolution: nn.Conv3d, hidden: Tensor) -> Tensor:
    """A causal convolution of which the last tap in time at the middle is all."""
    assert convolution.bias is not None
    product = torch.einsum("kc,ncthw->nkthw", convolution.weight[:, :, 2, 1, 1], hidden)
    return product + convolution.bias.view(1, -1, 1, 1, 1)


def _down(down: Any, hidden: Tensor) -> Tensor:
    """A downsampler with such a convolution: what it computes, and its shortcut."""
    hidden = torch.cat([hidden[:, :, : down.stride[0] - 1], hidden], dim=2)
    shortcut: Tensor = _folded(hidden, down.stride).unflatten(1, (-1, down.group_size)).mean(2)
    folded = _folded(_centre(down.conv.conv, hidden), down.stride)
    return folded + shortcut


def _patches(pixels: Tensor) -> Tensor:
    """[N, 3, T, H, W] -> [N, 3 * 16, T, H/4, W/4] in the order of the model's patches: channel, column, row."""
    count, _, frames, height, width = pixels.shape
    split = pixels.reshape(count, 3, frames, height // PATCH, PATCH, width // PATCH, PATCH)
    return split.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _blocks(pixels: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Everything that a cell of a coarser grid holds, as its channels; the first cell in time repeats its one frame."""
    count, _, frames, height, width = pixels.shape
    time = (frames - 1) // max(size[0] - 1, 1)
    rows, columns = height // size[1], width // size[2]
    front = pixels[:, :, :1].expand(-1, -1, time - 1, -1, -1)
    # Means of 2 x 2 pixels are enough to know where the components lie, and a quarter of the work.
    whole = torch.cat([front, pixels], 2)
    if rows >= 16:
        whole = nn.functional.avg_pool3d(whole, (1, 2, 2)) * 2
        rows, columns = rows // 2, columns // 2
    split = whole.reshape(count, 3, size[0], time, size[1], rows, size[2], columns)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _spread(features: Tensor) -> Tensor:
    """Deviation of each channel, [1, C, 1, 1, 1]."""
    return features.transpose(0, 1).flatten(1).std(1).view(1, -1, 1, 1, 1)


def _folded(fine: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[N, C, T, H, W] -> [N, C * stride, T/t, H/h, W/w], the inverse of the upsampler's shuffle."""
    count, channels, frames, height, width = fine.shape
    time, rows, columns = stride
    split = fine.reshape(count, channels, frames // time, time, height // rows, rows, width // columns, columns)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _principal(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first principal components [count, C] of features [N, C, ...], and their mean [C]; zero rows where C ends."""
    flat = features.transpose(0, 1).flatten(1)
    flat = flat[:, :: max(flat.shape[1] // PLACES, 1)].double()
    mean = flat.mean(1)
    centred = flat - mean[:, None]
    _, vectors = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
    chosen = vectors.flip(1).T[:count].float()
    rows = torch.zeros(count, features.shape[1])
    rows[: len(chosen)] = chosen
    return rows, mean.float()


def _compressed(features: Tensor, count: int) -> Tensor:
    components, mean = _principal(features, count)
    centred = features - mean.view(1, -1, 1, 1, 1)
    return torch.einsum("kc,ncthw->nkthw", components, centred)


def _regress(convolution: nn.Conv3d, hidden: Tensor, wanted: Tensor, generator: torch.Generator) -> None:
    """Weights of a 3 x 3 x 3 convolution from hidden to wanted, of equal T H W, by ridge regression on some places."""
    padded = torch.cat([hidden[:, :, :1], hidden, hidden[:, :, -1:]], 2)
    padded = nn.functional.pad(padded, (1, 1, 1, 1))
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
    count, channels, frames, height, width = hidden.shape
    places = torch.randperm(count * frames * height * width, generator=generator)[:ROWS]
    index = torch.unravel_index(places, (count, frames, height, width))
    n, t, h, w = index
    inputs = windows[n, :, t, h, w].flatten(1)
    # Neighbours may speak where the sample is large enough.
    noise = torch.full((channels, 3, 3, 3), NEIGHBOUR_RIDGE if len(inputs) <= 10 * inputs.shape[1] else RIDGE)
    noise[:, 1, 1, 1] = RIDGE
    solution = ridge(inputs, wanted[n, :, t, h, w], noise.flatten()).T
    assert convolution.bias is not None
    convolution.weight.copy_(solution[:, :-1].reshape(convolution.weight.shape))
    convolution.bias.copy_(solution[:, -1])


def ridge(
    inputs: Tensor, outputs: Tensor, noise: Tensor | float, *, least: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """The regression [F + 1, K] of outputs [P, K] on inputs [P, F], whose last row is the constant.

    As if each input had noise of its own: a share [F] of its mean square, and `least` besides. weights [P]: of places.
    """
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    weighted = inputs if weights is None else inputs * weights[:, None]
    gram = (weighted.T @ inputs).double()
    gram.diagonal()[:-1].mul_(1 + noise).add_(least * len(inputs))
    solution: Tensor = torch.linalg.solve(gram, (weighted.T @ outputs).double()).float()
    return solution
