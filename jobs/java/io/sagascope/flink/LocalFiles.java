package io.sagascope.flink;

import java.io.FilterOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import org.apache.hadoop.fs.FSError;
import org.apache.hadoop.fs.LocalFileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RawLocalFileSystem;
import org.apache.hadoop.fs.permission.FsPermission;

/**
 * Hadoop's local file system without what costs a commit most, a process {@code chmod} for every file and a {@code .crc}
 * file beside it, which gets one too: Parquet and Avro have checksums of their own, and files get the umask's permissions.
 * And a disk that is full is an exception, not an error.
 */
public final class LocalFiles extends LocalFileSystem {
    public LocalFiles() {
        super(new WithoutPermissions());
        setWriteChecksum(false);
        setVerifyChecksum(false);
    }

    private static final class WithoutPermissions extends RawLocalFileSystem {
        @Override
        public void setPermission(Path path, FsPermission permission) {}

        @Override
        protected OutputStream createOutputStream(Path path, boolean append) throws IOException {
            return new FailingAsOthersDo(super.createOutputStream(path, append));
        }

        @Override
        protected OutputStream createOutputStreamWithMode(Path path, boolean append, FsPermission permission)
                throws IOException {
            return new FailingAsOthersDo(super.createOutputStreamWithMode(path, append, permission));
        }
    }

    /** Hadoop makes an Error of a full disk, and Flink's task manager ends at an Error, for good; an exception it survives. */
    private static final class FailingAsOthersDo extends FilterOutputStream {
        FailingAsOthersDo(OutputStream out) {
            super(out);
        }

        @Override
        public void write(int value) throws IOException {
            try {
                out.write(value);
            } catch (FSError error) {
                throw new IOException(error.getCause());
            }
        }

        @Override
        public void write(byte[] bytes, int offset, int length) throws IOException {
            try {
                out.write(bytes, offset, length);
            } catch (FSError error) {
                throw new IOException(error.getCause());
            }
        }
    }
}
