"""ImageNet-100: its classes by WordNet id, and class numbers from folders named after them.

The 100 ids and their order are those of the list published with CMC (HobbitLong/CMC), which is also
the label order of the Hub's copy. Names are open_clip's ImageNet names of the same classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_clt.errors import InputError

IMAGENET100 = {
    "n02869837": "poke bonnet",
    "n01749939": "green mamba",
    "n02488291": "langur",
    "n02107142": "Dobermann",
    "n13037406": "gyromitra",
    "n02091831": "Saluki",
    "n04517823": "vacuum cleaner",
    "n04589890": "window screen",
    "n03062245": "cocktail shaker",
    "n01773797": "European garden spider",
    "n01735189": "garter snake",
    "n07831146": "carbonara",
    "n07753275": "pineapple",
    "n03085013": "computer keyboard",
    "n04485082": "tripod",
    "n02105505": "Komondor",
    "n01983481": "American lobster",
    "n02788148": "baluster / handrail",
    "n03530642": "honeycomb",
    "n04435653": "tile roof",
    "n02086910": "Papillon",
    "n02859443": "boathouse",
    "n13040303": "stinkhorn mushroom",
    "n03594734": "jeans",
    "n02085620": "Chihuahua",
    "n02099849": "Chesapeake Bay Retriever",
    "n01558993": "American robin",
    "n04493381": "hot tub",
    "n02109047": "Great Dane",
    "n04111531": "rotisserie",
    "n02877765": "bottle cap",
    "n04429376": "throne",
    "n02009229": "little blue heron",
    "n01978455": "rock crab",
    "n02106550": "Rottweiler",
    "n01820546": "lorikeet",
    "n01692333": "Gila monster",
    "n07714571": "cabbage",
    "n02974003": "car wheel",
    "n02114855": "coyote",
    "n03785016": "moped",
    "n03764736": "milk can",
    "n03775546": "mixing bowl",
    "n02087046": "toy terrier",
    "n07836838": "chocolate syrup",
    "n04099969": "rocking chair",
    "n04592741": "airplane wing",
    "n03891251": "park bench",
    "n02701002": "ambulance",
    "n03379051": "football helmet",
    "n02259212": "leafhopper",
    "n07715103": "cauliflower",
    "n03947888": "pirate ship",
    "n04026417": "purse",
    "n02326432": "hare",
    "n03637318": "lampshade",
    "n01980166": "fiddler crab",
    "n02113799": "Standard Poodle",
    "n02086240": "Shih Tzu",
    "n03903868": "pedestal",
    "n02483362": "gibbon",
    "n04127249": "safety pin",
    "n02089973": "English foxhound",
    "n03017168": "bell or wind chime",
    "n02093428": "American Staffordshire Terrier",
    "n02804414": "bassinet",
    "n02396427": "wild boar",
    "n04418357": "front curtain",
    "n02172182": "dung beetle",
    "n01729322": "eastern hog-nosed snake",
    "n02113978": "Mexican hairless dog (xoloitzcuintli)",
    "n03787032": "graduation cap",
    "n02089867": "Treeing Walker Coonhound",
    "n02119022": "red fox",
    "n03777754": "modem",
    "n04238763": "slide rule",
    "n02231487": "stick insect",
    "n03032252": "movie theater",
    "n02138441": "meerkat",
    "n02104029": "Kuvasz",
    "n03837869": "obelisk",
    "n03494278": "harmonica",
    "n04136333": "sarong",
    "n03794056": "mousetrap",
    "n03492542": "hard disk drive",
    "n02018207": "American coot",
    "n04067472": "fishing casting reel",
    "n03930630": "pickup truck",
    "n03584829": "clothes iron",
    "n02123045": "tabby cat",
    "n04229816": "balaclava ski mask",
    "n02100583": "Vizsla",
    "n03642806": "laptop computer",
    "n04336792": "stretcher",
    "n03259280": "Dutch oven",
    "n02116738": "African wild dog",
    "n02108089": "Boxer",
    "n03424325": "gas mask or respirator",
    "n01855672": "goose",
    "n02090622": "borzoi",
}
"""The class name that prompts use, by WordNet id, in label order."""


def class_numbers(names: Sequence[str]) -> list[int]:
    """The class number of each label name of a copy of the data.

    WordNet ids are looked up in the list, so that folders may be some of the 100, in any order. If
    no name is a WordNet id, there must be 100 names, and they are taken to be in list order.

    Raises:
        InputError: ids are mixed with other names or ids, or there are not 100 names.
    """
    wnids = list(IMAGENET100)
    known = [name for name in names if name in IMAGENET100]
    if known:
        for name in names:
            if name not in IMAGENET100:
                raise InputError(
                    f'imagenet100 has a class "{name}", which is not one of its 100 WordNet '
                    f"ids; expected ids such as {known[0]}."
                )
        return [wnids.index(name) for name in names]
    if len(names) != len(wnids):
        raise InputError(
            f'imagenet100 has {len(names)} classes, the first "{names[0] if names else ""}"; '
            "expected 100, or folders named after their WordNet ids."
        )
    return list(range(len(wnids)))
