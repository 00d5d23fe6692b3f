package io.sagascope.flink;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;

/** What JSON's own grammar does not say of a record's bytes. */
final class RecordText {
    private static final int CUT_BYTES = 8 * 1024;
    private static final byte[] CUT_MARK = " … [cut by sagascope]".getBytes(StandardCharsets.UTF_8);

    private RecordText() {}

    /** Valid UTF-8 without a byte order mark, in which no escape is half of a surrogate pair. */
    static boolean isUnicode(byte[] text) {
        boolean ascii = true;
        boolean escapes = false;
        for (byte b : text) {
            ascii &= b > 0; // UTF-16 and UTF-32, which a JSON parser would guess, have zeros
            escapes |= b == '\\';
        }
        return (ascii || isUtf8(text)) && (!escapes || surrogatesArePaired(text));
    }

    private static boolean isUtf8(byte[] text) {
        if (text[0] == (byte) 0xEF && text.length > 2 && text[1] == (byte) 0xBB && text[2] == (byte) 0xBF) {
            return false;
        }
        for (byte b : text) {
            if (b == 0) {
                return false;
            }
        }
        try {
            StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(text));
            return true;
        } catch (CharacterCodingException error) {
            return false;
        }
    }

    /** A backslash stands in strings alone, if the JSON is valid; if it is not, the parser says so. */
    private static boolean surrogatesArePaired(byte[] text) {
        int i = 0;
        while (i < text.length) {
            if (text[i] != '\\') {
                i++;
                continue;
            }
            int unit = unitAt(text, i);
            if (unit < 0) {
                i += 2;
            } else if (Character.isLowSurrogate((char) unit)) {
                return false;
            } else if (Character.isHighSurrogate((char) unit)) {
                int next = unitAt(text, i + 6);
                if (next < 0 || !Character.isLowSurrogate((char) next)) {
                    return false;
                }
                i += 12;
            } else {
                i += 6;
            }
        }
        return true;
    }

    /** The UTF-16 unit of the escape at {@code i}; -1 where there is no such escape. */
    private static int unitAt(byte[] text, int i) {
        if (i + 6 > text.length || text[i] != '\\' || text[i + 1] != 'u') {
            return -1;
        }
        int unit = 0;
        for (int k = i + 2; k < i + 6; k++) {
            int digit = Character.digit(text[k], 16);
            if (digit < 0) {
                return -1;
            }
            unit = unit << 4 | digit;
        }
        return unit;
    }

    /** The beginning of a record, for a person to read. */
    static String shown(byte[] text, int characters) {
        int length = Math.min(text.length, characters + 4);
        return new String(text, 0, length, StandardCharsets.UTF_8);
    }

    /** As {@code str.isspace} of Python has it. */
    static boolean isBlank(String text) {
        return text.chars().allMatch(c -> Character.isWhitespace(c) || Character.isSpaceChar(c) || c == 0x85);
    }

    /** UTF-8, at most 8 KiB; what is longer ends in a mark. */
    static byte[] cut(String text) {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        if (bytes.length <= CUT_BYTES) {
            return bytes;
        }
        int room = CUT_BYTES - CUT_MARK.length;
        while ((bytes[room] & 0xC0) == 0x80) {
            room--;
        }
        byte[] cut = new byte[room + CUT_MARK.length];
        System.arraycopy(bytes, 0, cut, 0, room);
        System.arraycopy(CUT_MARK, 0, cut, room, CUT_MARK.length);
        return cut;
    }
}
