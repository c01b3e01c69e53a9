"""Texts of the tokenizer fixture: what the small vocabulary is learned from, and what is encoded with it."""

TRAINING = """
The moon goes around the earth once in a month, and the earth goes around the sun once in a year. When the moon is nearest
to the earth we say that it is in perigee; when a small ship that goes around the moon is nearest to the moon we say that
it is in perilune. There is no air on the moon, so there is no wind, no rain and no sound. The sky is black in the day and
in the night. A stone that falls there falls slowly. People have walked on the moon and have brought stones back home.
What is in the picture? There is a red circle on the left and a blue square on the right. How many shapes are there? There
are three shapes: one red circle, one blue square and one green triangle. The circle is above the square. I can't see that.
It's what we'll need; they're here, I've seen it, I'd say so, don't you think? print(x), return value; let mut number = 0;
for (index, item) in list.iter().enumerate() { total += item.len(); } getHttpResponse parseJsonValue MAX_TOKENS
月亮绕着地球转，地球绕着太阳转。月亮离地球最近的时候叫做近地点。图片里有什么？左边有一个红色的圆，右边有一个蓝色的正方形。
你好，世界！你好吗？我很好，谢谢你。中国有很多人，今天的天气很好，我们去看月亮。一二三四五六七八九十。
月は地球のまわりを回っています。今日は天気がいいですね。ありがとうございます。カメラで月の写真をとりました。
달은 지구 주위를 돕니다. 오늘은 날씨가 좋습니다. 안녕하세요. 감사합니다.
Луна вращается вокруг Земли, а Земля вращается вокруг Солнца. Сегодня хорошая погода. Привет, мир!
Der Mond dreht sich um die Erde, und die Erde dreht sich um die Sonne. Schöne Grüße aus München, es ist kalt draußen.
La lune tourne autour de la terre. L'été est déjà là; où êtes-vous allés hier? Ça va très bien, merci.
الشمس والقمر والارض. مرحبا بالعالم. النص من اليمين الى اليسار.
12 24 36 100 200 1000 1024 2048 1999 2000 2024 3.14 0.5 10:30 50% 7 + 5 = 12
"""

VECTORS = [
    "",
    " ",
    "a",
    "Hello world",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces",
    "many     spaces   here",
    "tab\there\t\tand there",
    "line\nbreak",
    "line \n break",
    "windows\r\nline\r\n\r\nends",
    "\n",
    "\n\n\n",
    "  \n  \n",
    " \t \n\t x",
    "end with newlines\n\n",
    "   ",
    "x   ",
    "你好世界",
    "你好，世界！",
    "月亮绕着地球转，地球绕着太阳转。",
    "中文English混合",
    "English中文 English 中文",
    "東西南北",
    "在東西南北在",
    "日本語とカタカナとひらがな",
    "カメラで月の写真をとりました。",
    "안녕하세요 세계",
    "Привет, мир!",
    "ПРИВЕТ Мир миР",
    "مرحبا بالعالم",
    "Schöne Grüße aus München",
    "L'été est déjà là",
    "camelCase PascalCase snake_case SCREAMING_SNAKE kebab-case",
    "getHTTPResponseCode parseXMLFile iPhone McDonald",
    "HTMLParser2XML v2Beta",
    "I can't, you've, they're, we'll, he'd, I'm, it's",
    "I CAN'T, YOU'VE, THEY'RE, WE'LL, HE'D, I'M, IT'S",
    "'s 't 're x's's y'sx",
    "don’t curly’s",
    "1234567890",
    "1 22 333 4444 55555 666666 7777777",
    "3.14159 1,000,000 -42 50% $9.99",
    "١٢٣٤٥ ४५६७ Ⅷ ½ x²",
    "a1b2c3 4th 2nd",
    "!!! ??? ... --- *** ###",
    "(parentheses) [brackets] {braces} <angles>",
    "a+b=c; x->y => z != w <= v && u || t",
    "https://example.com/path?query=1&other=two#part",
    "user@example.com",
    "// comment\nfn main() {\n    println!(\"hi\");\n}\n",
    "    indented\n        more\n\tand a tab",
    "😀",
    "😀😃😄 smile 🙂!",
    "👩‍👩‍👧‍👦 family 🇩🇪 flag 👍🏽 skin",
    "e\u0301 combining a\u030a\u0323 marks n\u0303o",
    "\u0301 starts with a mark",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Ǆ ǅ ǆ ʰ ª title and modifier letters",
    "mixed Кириллица и latin 和 汉字 と かな",
    "〇 々 〆 㐀 𠀀 ⺀ Han corners",
    "zero\u200bwidth\u200djoin\ufeffbom",
    "non\u00a0breaking\u3000ideographic\u2003em",
    "\u2028line separator\u2029paragraph",
    "control \u0000 \u0007 \u001b[0m \u007f",
    "<|im_end|>",
    "<|im_user|>user<|im_middle|>hi<|im_end|>",
    "[BOS]text[EOS] <|media_pad|> [PAD]",
    "◁think▷ well ◁/think▷ answer",
    " quixotic",
    "quixotic and  quixotic!",
    "The moon is in perilune.",
    "ａｂｃ ＦＵＬＬ １２３ ﬁ ligature",
    "ß ẞ ſ K Å İ ı",
    "x'S y'LL z'Re",
    "'S 'LL alone",
    "ſ'ſ",
    "…—–“quoted”‘single’«guillemets»",
    "a\u0300\u0301\u0302\u0303b",
    "\U0010ffff \ue000 unassigned and private",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                        wide",
    "ababababababababab",
    "What is in the picture? There is a red circle on the left.",
]

# Texts of templates: here the special tokens are meant.
SPECIAL_VECTORS = [
    "<|im_end|>",
    "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|><|im_user|>user<|im_middle|>Hello<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|>",
    "<|im_user|>user<|im_middle|>What is in<|media_start|>image<|media_content|><|media_pad|><|media_end|>the picture?<|im_end|>",
    "[BOS]text[EOS][PAD][UNK][EOT]",
    "<|im_end|> <|im_end|>\n<|im_end|>a<|im_end",
    "<|im_unknown|><|reserved_token_0|>",
]
