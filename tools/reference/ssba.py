"""References for crates/attacks/ssba, made with PyTorch: StegaStamp's encoder and decoder, and a step of their training.

    python tools/reference/ssba.py      # writes tools/reference/golden/ssba/{32,64}.safetensors

Networks and loss are those of the published description (U-Net with nearest up-sampling and 2x2 convolutions padded to
the right and below; binary cross-entropy of 100 bits plus a weight times the mean squared change of the image), written
anew. Weights and inputs are not stored: they are a sine of the element's number, in this project's layouts (convolutions
as PyTorch's, linear layers before and after pictures with their rows or columns in the order height, width, channel).
Everything in f64; two images at 32 and at 64 pixels, networks of width 4.

A golden file has the encoded images (as f32), the decoder's logits, the losses [image, bits, total] before and after a
step of Adam (learning rate 1e-3), and for every parameter, in the order encoder, decoder, the norm of its gradient and
the product of its gradient, and of its change, with a fixed sequence. Made with PyTorch 2.15 (CPU).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

GOLDEN = Path(__file__).parent / "golden" / "ssba"
WIDTH, BITS, IMAGE_WEIGHT = 4, 100, 1.5


def sequence(count, start):
    return torch.sin((torch.arange(count, dtype=torch.float64) + start) * 0.7548)


class Encoder(nn.Module):
    def __init__(self, w):
        super().__init__()
        conv = lambda i, o, s=1: nn.Conv2d(i, o, 3, s, 1)
        self.secret_dense = nn.Linear(BITS, 768)
        self.conv1, self.conv2, self.conv3 = conv(6, w), conv(w, w, 2), conv(w, 2 * w, 2)
        self.conv4, self.conv5 = conv(2 * w, 4 * w, 2), conv(4 * w, 8 * w, 2)
        self.up6, self.conv6 = nn.Conv2d(8 * w, 4 * w, 2), conv(8 * w, 4 * w)
        self.up7, self.conv7 = nn.Conv2d(4 * w, 2 * w, 2), conv(4 * w, 2 * w)
        self.up8, self.conv8 = nn.Conv2d(2 * w, w, 2), conv(2 * w, w)
        self.up9, self.conv9 = nn.Conv2d(w, w, 2), conv(2 * w + 6, w)
        self.conv10, self.residual = conv(w, w), nn.Conv2d(w, 3, 1)

    def forward(self, fingerprint, image):
        secret = F.relu(self.secret_dense(fingerprint)).view(-1, 3, 16, 16)
        secret = F.interpolate(secret, scale_factor=image.shape[-1] // 16, mode="nearest")
        up = lambda layer, x: F.relu(layer(F.pad(F.interpolate(x, scale_factor=2, mode="nearest"), (0, 1, 0, 1))))
        both = torch.cat([secret, image], 1)
        c1 = F.relu(self.conv1(both))
        c2 = F.relu(self.conv2(c1))
        c3 = F.relu(self.conv3(c2))
        c4 = F.relu(self.conv4(c3))
        c5 = F.relu(self.conv5(c4))
        c6 = F.relu(self.conv6(torch.cat([c4, up(self.up6, c5)], 1)))
        c7 = F.relu(self.conv7(torch.cat([c3, up(self.up7, c6)], 1)))
        c8 = F.relu(self.conv8(torch.cat([c2, up(self.up8, c7)], 1)))
        c9 = F.relu(self.conv9(torch.cat([c1, up(self.up9, c8), both], 1)))
        return torch.sigmoid(self.residual(F.relu(self.conv10(c9))))


class Decoder(nn.Module):
    def __init__(self, w, size):
        super().__init__()
        layers, channels = [], 3
        for widths, stride in [(1, 2), (1, 1), (2, 2), (2, 1), (2, 2), (4, 2), (4, 2)]:
            layers += [nn.Conv2d(channels, widths * w, 3, stride, 1), nn.ReLU()]
            channels = widths * w
        self.decoder = nn.Sequential(*layers)
        self.dense = nn.Sequential(nn.Linear((size // 32) ** 2 * channels, 16 * w), nn.ReLU(), nn.Linear(16 * w, BITS))

    def forward(self, image):
        return self.dense(self.decoder(image).flatten(1))


def here(name, value, size):
    """A parameter (or its gradient) in this project's order of elements."""
    if name.startswith("secret_dense."):
        return value.reshape(3, 16, 16, -1).permute(1, 2, 0, 3)
    if name == "dense.0.weight":
        side = size // 32
        return value.reshape(value.shape[0], -1, side, side).permute(0, 2, 3, 1)
    return value


def there(name, value, size, shape):
    """The inverse of `here`: elements in this project's order as PyTorch wants them."""
    if name.startswith("secret_dense."):
        return value.reshape(16, 16, 3, -1).permute(2, 0, 1, 3).reshape(shape)
    if name == "dense.0.weight":
        side = size // 32
        return value.reshape(shape[0], side, side, -1).permute(0, 3, 1, 2).reshape(shape)
    return value.reshape(shape)


def golden(size):
    encoder, decoder = Encoder(WIDTH).double(), Decoder(WIDTH, size).double()
    named = [*encoder.named_parameters(), *decoder.named_parameters()]
    start = 1
    with torch.no_grad():
        for name, parameter in named:
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 16
            values = sequence(parameter.numel(), start) * (6 / fan_in) ** 0.5
            parameter.copy_(there(name, values, size, parameter.shape))
            start += parameter.numel()
    image = (sequence(2 * size * size * 3, 7) / 2 + 0.5).reshape(2, size, size, 3).permute(0, 3, 1, 2)
    bits = (sequence(2 * BITS, 3) > 0).double().reshape(2, BITS)
    optimizer = torch.optim.Adam([parameter for _, parameter in named], lr=1e-3)

    def losses():
        encoded = encoder(bits, image)
        logits = decoder(encoded)
        change, loss = F.mse_loss(encoded, image), F.binary_cross_entropy_with_logits(logits, bits)
        return encoded, logits, change, loss, IMAGE_WEIGHT * change + loss

    encoded, logits, *before = losses()
    before[-1].backward()
    flat = lambda name, value: here(name, value.detach(), size).reshape(-1)
    gradients = [flat(name, parameter.grad) for name, parameter in named]
    old = [flat(name, parameter).clone() for name, parameter in named]
    optimizer.step()
    changes = [flat(name, parameter) - value for (name, parameter), value in zip(named, old)]
    product = lambda value: value @ sequence(value.numel(), 5)
    tensors = {
        "encoded": encoded.detach().permute(0, 2, 3, 1).float(),
        "logits": logits.detach(),
        "before": torch.stack(before).detach(),
        "after": torch.stack(losses()[2:]).detach(),
        "gradient.norms": torch.stack([gradient.norm() for gradient in gradients]),
        "gradient.products": torch.stack([product(gradient) for gradient in gradients]),
        "change.products": torch.stack([product(change) for change in changes]),
    }
    assert all(gradient.norm() > 0 for gradient in gradients)
    print(size, tensors["before"].tolist(), tensors["after"].tolist(), float(tensors["encoded"].std()))
    GOLDEN.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, GOLDEN / f"{size}.safetensors")


golden(32)
golden(64)
