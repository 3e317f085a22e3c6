// The file FATBIN as read-only data under the name SYMBOL.
    .section .nv_fatbin, "a"
    .balign 64
    .globl SYMBOL
    .hidden SYMBOL
SYMBOL:
    .incbin FATBIN
    .section .note.GNU-stack, "", %progbits
