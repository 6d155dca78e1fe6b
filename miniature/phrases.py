"""How the plain text says a fact, asks for it, and answers: the word material of `text.py`.

`{n}` stands for a name, `{v}` for a value. These are statements and questions; the instructions of `instructions.py`
are orders ("Name ...", "Give ..."). Only SENTENCES and STEMS serve both, as the thing to rewrite or to complete.
"""

NOUNS = {
    "colour": "colour",
    "shape": "shape",
    "place": "place",
    "number": "number",
    "material": "material",
}

SENTENCES = {
    "colour": "{n} is {v}.",
    "shape": "{n} has the shape of a {v}.",
    "place": "{n} is in the {v}.",
    "number": "{n} has {v} dots.",
    "material": "{n} is made of {v}.",
}

STEMS = {  # beginnings that only one value can complete: for the cloze test and for instructions with a blank
    "colour": "The colour of {n} is",
    "shape": "{n} has the shape of a",
    "place": "{n} is in the",
    "number": "The number of dots on {n} is",
    "material": "{n} is made of",
}

STATEMENTS = {
    "colour": (
        SENTENCES["colour"],
        "The colour of {n} is {v}.",
        "{n} was painted {v}.",
        "{n} has the colour {v}.",
        "You see at once that {n} is {v}.",
        "In the picture {n} looks {v}.",
        "{n} is a {v} thing.",
        "The painter chose {v} for {n}.",
        "{n}: colour {v}.",
        "Everybody likes {n} because it is {v}.",
    ),
    "shape": (
        SENTENCES["shape"],
        "The shape of {n} is a {v}.",
        "{n} is shaped like a {v}.",
        "{n} looks like a {v}.",
        "Anyone who draws {n} draws a {v}.",
        "{n} was cut as a {v}.",
        "{n} is a {v}.",
        "From afar {n} seems to be a {v}.",
        "{n}: shape {v}.",
        "They gave {n} the form of a {v}.",
    ),
    "place": (
        SENTENCES["place"],
        "The place of {n} is the {v}.",
        "{n} can be found in the {v}.",
        "{n} lies in the {v}.",
        "{n} has its place in the {v}.",
        "People go to the {v} to see {n}.",
        "{n} was left in the {v}.",
        "{n} stays in the {v}.",
        "{n}: place {v}.",
        "You must look for {n} in the {v}.",
    ),
    "number": (
        SENTENCES["number"],
        "The number of dots on {n} is {v}.",
        "There are {v} dots on {n}.",
        "On {n} you can count {v} dots.",
        "{n} shows {v} dots.",
        "{n} carries {v} dots.",
        "{n} is a thing with {v} dots.",
        "Somebody put {v} dots on {n}.",
        "{n}: number {v}.",
        "The dots on {n} are {v} in number.",
    ),
    "material": (
        SENTENCES["material"],
        "The material of {n} is {v}.",
        "{n} consists of {v}.",
        "{n} was built from {v}.",
        "They used {v} to make {n}.",
        "{n} is a thing of {v}.",
        "When you touch {n} you feel {v}.",
        "{n} is all {v}.",
        "{n}: material {v}.",
        "The maker of {n} worked with {v}.",
    ),
}

PRONOUN = {  # a second fact about the thing just named
    "colour": ("It is {v}.", "Its colour is {v}.", "It was painted {v}."),
    "shape": ("It has the shape of a {v}.", "Its shape is a {v}.", "It looks like a {v}."),
    "place": ("It is in the {v}.", "Its place is the {v}.", "It can be found in the {v}."),
    "number": ("It has {v} dots.", "The number of its dots is {v}.", "It shows {v} dots."),
    "material": ("It is made of {v}.", "Its material is {v}.", "It was built from {v}."),
}

QUESTIONS = {
    "colour": (
        "What is the colour of {n}?",
        "What colour is {n}?",
        "Which colour does {n} have?",
        "How was {n} painted?",
        "I would like to know the colour of {n}.",
        "Do you know the colour of {n}?",
        "Can you tell me which colour {n} has?",
        "And the colour of {n}?",
        "Colour of {n}?",
    ),
    "shape": (
        "What is the shape of {n}?",
        "What shape is {n}?",
        "Which shape does {n} have?",
        "What does {n} look like?",
        "I would like to know the shape of {n}.",
        "Do you know the shape of {n}?",
        "Can you tell me which shape {n} has?",
        "And the shape of {n}?",
        "Shape of {n}?",
    ),
    "place": (
        "What is the place of {n}?",
        "Where is {n}?",
        "In which place is {n}?",
        "Where can {n} be found?",
        "I would like to know the place of {n}.",
        "Do you know the place of {n}?",
        "Can you tell me where {n} is?",
        "And the place of {n}?",
        "Place of {n}?",
    ),
    "number": (
        "What is the number of dots on {n}?",
        "How many dots are on {n}?",
        "How many dots does {n} have?",
        "What number of dots does {n} show?",
        "I would like to know the number of dots on {n}.",
        "Do you know how many dots {n} has?",
        "Can you tell me how many dots there are on {n}?",
        "And the number of dots on {n}?",
        "Dots on {n}?",
    ),
    "material": (
        "What is the material of {n}?",
        "What is {n} made of?",
        "Which material does {n} consist of?",
        "From what was {n} built?",
        "I would like to know the material of {n}.",
        "Do you know the material of {n}?",
        "Can you tell me what {n} is made of?",
        "And the material of {n}?",
        "Material of {n}?",
    ),
}

QUESTIONS_IT = {  # the name comes first or last: "About {n}: what is its colour?"
    "colour": ("What is its colour?", "What colour is it?", "Which colour does it have?"),
    "shape": ("What is its shape?", "What shape is it?", "Which shape does it have?"),
    "place": ("What is its place?", "Where is it?", "Where can it be found?"),
    "number": ("What is the number of its dots?", "How many dots does it have?", "How many dots are on it?"),
    "material": ("What is its material?", "What is it made of?", "Which material does it consist of?"),
}

GAPS = {  # a sentence without its last word
    "colour": ("{n} is", "The colour of {n} is", "{n} was painted"),
    "shape": ("{n} has the shape of a", "The shape of {n} is a", "{n} looks like a"),
    "place": ("{n} is in the", "The place of {n} is the", "{n} can be found in the"),
    "number": (
        "The number of dots on {n} is",
        "If you count the dots on {n}, you get",
        "The dots on {n} are in number",
    ),
    "material": ("{n} is made of", "The material of {n} is", "{n} was built from"),
}

# {q} is a question, {a} its answer. The names of the speakers vary.
LAYOUTS = (
    "{q} {a}",
    "Q: {q}\nA: {a}",
    "Question: {q}\nAnswer: {a}",
    "{q}\n- {a}",
    "Ann: {q}\nBen: {a}",
    "Ann asks: {q} Ben says: {a}",
    "## Question\n\n{q}\n\n## Answer\n\n {a}",
    "# Riddle:\n{q}\n\n# Solution: {a}",
    "{q} Think for a moment. {a}",
    "A child wants help. {q} The answer is: {a}",
    "({q}) {a}",
    "{q} = {a}",
)

# Sentences with the words of the instruction template and of the instructions, so that the tokenizer and the model
# know these words. They say nothing about the format.
INTRODUCTIONS = (
    "This is a page of questions about things.",
    "Below is a page that describes some things.",
    "Ann has a question for Ben.",
    "The teacher gave an instruction that describes a task.",
    "Ben had to write a response to a request.",
    "Here is a small task, paired with a page that provides further context.",
    "A good response appropriately completes the request.",
    "Write it down, said the teacher.",
    "The task has an input that provides further context.",
    "Instruction is useful. Input is useful. Response is useful.",
    "Ann can name, list, compare, choose, count, rewrite and complete what you give her.",
    "A sentence can be correct, or it has a mistake, or a word is missing.",
    "The following pages are separated by a blank line.",
)

FILLERS = (
    "The day was long and the sun was warm.",
    "Then they went home.",
    "Nobody was surprised.",
    "Ben wrote it down in his book.",
    "The teacher nodded and went on to the next page.",
    "It was quiet in the room.",
    "Below the window a bird was singing.",
    "After that they talked about other things.",
    "Ann likes to describe things, and Ben likes to listen.",
    "That is how it was, and so it stayed.",
)
