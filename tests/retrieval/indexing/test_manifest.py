from retrieval.indexing.manifest import Segment


def test_parameters_are_of_the_kind_of_query_or_the_widest_and_candidates_stay_as_many() -> None:
    tuned = {"text": {"nprobe": 64, "k_factor": 16}, "image": {"nprobe": 8, "k_factor": 32}}
    segment = Segment.model_validate(
        {
            "name": "",
            "kinds": {},
            "parameters": {"image": tuned, "text": {"text": {}, "image": {}}},
            "measured": {},
            "parts": [],
            "files": {},
        }
    )
    assert segment.parameters_for("image", asked_by="image") == tuned["image"]
    assert segment.parameters_for("image") == {"nprobe": 64, "k_factor": 32}
    assert segment.parameters_for("image", 40) == {"nprobe": 64, "k_factor": 8}
    assert segment.parameters_for("image", 3000) == {"nprobe": 64, "k_factor": 2}
    assert segment.parameters_for("text", 40) == {}
