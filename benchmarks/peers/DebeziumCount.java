import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.io.FileInputStream;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;

/** Debezium's own engine: prints how many events came, and the seconds from the first to the last. */
public class DebeziumCount {
    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (FileInputStream file = new FileInputStream(arguments[0])) {
            properties.load(file);
        }
        long wanted = Long.parseLong(arguments[1]);
        long[] seen = new long[3];
        CountDownLatch done = new CountDownLatch(1);
        DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine.create(Json.class)
                .using(properties)
                .notifying((records, committer) -> {
                    for (ChangeEvent<String, String> record : records) {
                        if (seen[0]++ == 0) {
                            seen[1] = System.nanoTime();
                        }
                        committer.markProcessed(record);
                    }
                    committer.markBatchFinished();
                    seen[2] = System.nanoTime();
                    if (seen[0] >= wanted) {
                        done.countDown();
                    }
                })
                .using((success, message, error) -> {
                    if (!success) {
                        System.err.println(message + " " + error);
                        System.exit(1);
                    }
                })
                .build();
        Executors.newSingleThreadExecutor().execute(engine);
        done.await();
        System.out.println(seen[0] + " " + (seen[2] - seen[1]) / 1e9);
        System.out.flush();
        System.exit(0);
    }
}
