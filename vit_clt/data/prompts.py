"""Zero-shot prompts: templates and CIFAR names of OpenAI's published list (openai/CLIP,
data/prompts.md), and COCO's 80 category names."""

from __future__ import annotations

SINGLE_TEMPLATE = ["a photo of a {}."]

_ADJECTIVES = (
    "",
    "blurry ",
    "black and white ",
    "low contrast ",
    "high contrast ",
    "bad ",
    "good ",
)
CIFAR_TEMPLATES = (
    [f"a {adjective}photo of a {{}}." for adjective in _ADJECTIVES]
    + [f"a photo of a {size} {{}}." for size in ("small", "big")]
    + [f"a {adjective}photo of the {{}}." for adjective in _ADJECTIVES]
    + [f"a photo of the {size} {{}}." for size in ("small", "big")]
)
TEMPLATE_SETS = {"single": SINGLE_TEMPLATE, "ensemble": CIFAR_TEMPLATES}

CIFAR10_CLASSES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]  # fmt: skip

CIFAR100_CLASSES = [
    "apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple tree", "motorcycle", "mountain", "mouse", "mushroom", "oak tree", "orange", "orchid",
    "otter", "palm tree", "pear", "pickup truck", "pine tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow tree", "wolf", "woman",
    "worm",
]  # fmt: skip

CIFAR10_SYNONYMS = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile"}
"""Other names that copies of CIFAR-10 give its classes."""
CIFAR100_SYNONYMS = {"cra": "crab"}
"""A name of the Hub's copy that is spelt otherwise than in the published list."""

# in the order of their ids, which leave gaps between 1 and 90
COCO_CLASSES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
]  # fmt: skip
