"""Run by test_compat.py in an environment that has clip-retrieval: its ClipClient, unchanged.

    python clip_client_calls.py URL INDEX TEXT PICTURE PICTURE_URL

Prints what each call gave as one JSON object.
"""

import importlib.util
import json
import sys
from types import ModuleType

url, index, text, picture, picture_url = sys.argv[1:]

# The package's own __init__ imports its back end, and with it torch; the client needs neither.
package = ModuleType("clip_retrieval")
spec = importlib.util.find_spec("clip_retrieval")
assert spec is not None
assert spec.submodule_search_locations is not None
package.__path__ = list(spec.submodule_search_locations)
sys.modules["clip_retrieval"] = package
client = importlib.import_module("clip_retrieval.clip_client")

off = dict.fromkeys(("deduplicate", "use_safety_model", "use_violence_detector"), False)
plain = client.ClipClient(url, index, num_images=5, **off)
captions = client.ClipClient(url, index, num_images=3, modality=client.Modality.TEXT, **off)
print(
    json.dumps(
        {
            "text": plain.query(text=text),
            "image": plain.query(image=picture),
            "image_url": plain.query(image=picture_url),
            "embedding": plain.query(embedding_input=[0.5] * 32),
            "captions": captions.query(text=text),
            "defaults": client.ClipClient(url, index).query(text=text),
        }
    )
)
