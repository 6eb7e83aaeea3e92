"""What reads the words of an image, or knows its faces. A new one is one file here, and a line of a recipe.

    @RECOGNISERS.register
    class MyReaderConfig(RecogniserConfig):
        kind: Literal["mine"] = "mine"
        looks_for: ClassVar[Content] = "text"

        def build(self) -> Recogniser: ...

`evaluation: {recognisers: [{kind: mine}]}` then gives `text_accuracy_mine` and `text_similarity_mine`.
"""
