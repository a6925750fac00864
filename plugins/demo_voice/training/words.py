"""Words written for this project, from which `sentences` builds its sentences."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


NAMES = words(
    "Anna Ben Clara David Emma Frank Grace Henry Irene Jack Kate Leo Maria Nora Oliver Paul "
    "Quinn Rosa Sam Tom Ursula Victor Wendy Xavier Yvonne Zoe Alice Arthur Bella Charles Daniel "
    "Edith Felix George Hannah Isaac Julia Karen Louis Martin Nina Oscar Peter Rachel Simon "
    "Teresa Walter Lucy Robert Susan Michael Sarah John Mary Elizabeth William Andrew Jessica"
)
PLACES = words(
    "London Paris Boston Chicago Berlin Vienna Madrid Oslo Dublin Rome Athens Cairo Tokyo Sydney "
    "Toronto Denver Texas Florida Canada England Ireland Norway India China Japan Brazil Mexico "
    "Germany France Spain Italy Egypt Kenya Boston Seattle Geneva Prague Warsaw Lisbon Amsterdam"
)
PEOPLE = words(
    "man woman child boy girl teacher doctor farmer driver neighbor friend brother sister mother "
    "father cousin uncle aunt student painter singer writer nurse captain soldier king queen "
    "lawyer baker gardener pilot sailor engineer judge waiter guest stranger visitor president"
)
ANIMALS = words(
    "dog cat horse cow sheep bird fish mouse rabbit fox bear wolf lion tiger elephant duck goose "
    "chicken pig goat frog snake bee spider owl eagle whale monkey donkey squirrel turtle"
)
THINGS = words(
    "book table chair window door house garden street river mountain bridge road car train bus "
    "boat ship plane bicycle letter paper pencil picture box bag key clock watch lamp candle cup "
    "glass plate bottle knife spoon bread cheese apple orange lemon cake coat hat shoe shirt "
    "pocket bed pillow blanket mirror brush hammer ladder rope wheel engine camera telephone "
    "computer radio piano guitar drum ball kite tree flower leaf stone shell feather island "
    "village city market school church museum library station airport kitchen office hospital "
    "field forest valley beach lake ocean desert storm cloud story song question answer idea plan "
    "problem reason machine tool map ticket dollar newspaper magazine message present basket"
)
STUFF = words(
    "water milk coffee tea sugar salt rice sand snow rain wind smoke wood gold silver glass paper "
    "music news advice work money time weather traffic light noise silence food fruit furniture"
)
ADJECTIVES = words(
    "big small old young new good bad long short tall red blue green yellow white black brown "
    "warm cold hot cool dry wet soft hard heavy light bright dark quiet loud quick slow early late "
    "happy sad angry tired hungry kind brave clever strange simple difficult easy empty full "
    "clean dirty broken open closed rich poor beautiful ugly wonderful terrible famous ordinary "
    "narrow wide deep shallow fresh sweet bitter sour gentle rough smooth sharp round square "
    "wooden golden ancient modern careful lazy busy lonely proud silly serious dangerous useful"
)
TRANSITIVE = (  # base, third person, past
    "see sees saw|find finds found|take takes took|bring brings brought|buy buys bought|"
    "sell sells sold|make makes made|break breaks broke|open opens opened|close closes closed|"
    "carry carries carried|watch watches watched|follow follows followed|help helps helped|"
    "visit visits visited|remember remembers remembered|forget forgets forgot|love loves loved|"
    "hate hates hated|need needs needed|want wants wanted|keep keeps kept|lose loses lost|"
    "choose chooses chose|draw draws drew|paint paints painted|clean cleans cleaned|"
    "repair repairs repaired|build builds built|push pushes pushed|pull pulls pulled|"
    "describe describes described|discover discovers discovered|throw throws threw|"
    "catch catches caught|hide hides hid|hold holds held|leave leaves left|reach reaches reached|"
    "touch touches touched|measure measures measured|examine examines examined|hear hears heard"
)
INTRANSITIVE = (
    "sleep sleeps slept|run runs ran|walk walks walked|sing sings sang|dance dances danced|"
    "laugh laughs laughed|cry cries cried|wait waits waited|arrive arrives arrived|"
    "leave leaves left|work works worked|swim swims swam|fall falls fell|smile smiles smiled|"
    "travel travels traveled|listen listens listened|speak speaks spoke|think thinks thought|"
    "dream dreams dreamed|return returns returned|grow grows grew|shout shouts shouted|"
    "whisper whispers whispered|stand stands stood|sit sits sat|live lives lived|play plays played"
)
ADVERBS = words(
    "slowly quickly quietly loudly carefully gently suddenly happily sadly often never always "
    "again together alone early late today yesterday tomorrow tonight now soon here there "
    "upstairs outside inside somewhere everywhere twice once finally certainly perhaps"
)
PREPOSITIONS = words(
    "in on under behind beside near above below across through around against along inside "
    "outside beyond before after without with from toward over between"
)
TIMES = _phrases(
    "in the morning|at night|in the evening|at noon|on Monday|on Tuesday|on Wednesday|on Thursday|"
    "on Friday|on Saturday|on Sunday|in January|in February|in March|in April|in May|in June|"
    "in July|in August|in September|in October|in November|in December|last week|next year|"
    "every day|all day long|a long time ago|this afternoon|the day after tomorrow|before dinner"
)
PLURAL_UNITS = words(
    "people days hours minutes years miles pounds pages steps trees houses dollars books letters "
    "horses weeks rooms meters students tickets apples soldiers stars words"
)
SHORT = _phrases(
    "Yes.|No.|Hello!|Good morning!|Good evening.|Thank you very much.|You are welcome.|Please.|"
    "How are you?|I am fine, thanks.|What is your name?|See you tomorrow!|Good night.|Excuse me.|"
    "I am sorry.|Never mind.|Of course!|Come in, please.|Be careful!|Wait a minute.|Look at that!|"
    "What a pity!|Well done!|Not at all.|I don't know.|That's right.|It's all right.|Let's go!|"
    "Why not?|Who is there?|Where are you?|Really?|Maybe later.|Stop!|Help!|Welcome home.|"
    "Can you hear me?|What time is it?|Nice to meet you.|Have a nice day!|Happy birthday!"
)
WONDERS = _phrases("I think|I hope|I believe|She says|He said|They say|We know|I am sure|You see")
JOINERS = _phrases("and|but|so|because|while|although|when|before|after|until|since|if")
